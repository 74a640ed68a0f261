-- What counts against limits (charge.go, usage.go); the function charge_usage is in
-- migrations/0001_queue.sql.

-- name: try_charge
-- Says which limit would refuse a message.
select charge, used, retry_at
from charge_usage(array[@id::uuid], false,
	@limit_scope::smallint[], @limit_subject::bigint[], @limit_kind::smallint[], @limit_window::integer[],
	@charge_message::integer[], @charge_limit::integer[], @charge_amount::bigint[], @charge_most::bigint[])
where refused

-- name: usage
-- Reads what a charge would find.
select x.scope, x.subject, x.kind, x.window_s, coalesce(sum(u.n) filter (where u.at > b.bucket - 62), 0)::bigint
from usage_window x
	cross join lateral (select greatest(floor(extract(epoch from clock_timestamp()) * 60 / x.window_s)::bigint, x.at[cardinality(x.at)]) as bucket) b
	left join lateral unnest(x.at, x.n) u(at, n) on true
where (x.scope, x.subject) in (select 1::smallint, @user_id::bigint union all select 2::smallint, unnest(@credentials::bigint[]))
group by x.scope, x.subject, x.kind, x.window_s
order by x.scope, x.subject, x.kind, x.window_s
