-- The counts that limits are compared with (usage.go); the function charge_usage is in
-- migrations/0003_quota.sql.

-- name: try_charge
-- Says which limit would refuse a message.
select charge, used, retry_at
from charge_usage(array[gen_random_uuid()], false,
	@limit_scope::text[], @limit_subject::text[], @limit_kind::text[], @limit_window::integer[],
	@charge_message::integer[], @charge_limit::integer[], @charge_amount::bigint[], @charge_most::bigint[])
where refused

-- name: usage
-- Reads what a charge and enter_session would find.
with asked as (select distinct * from unnest(@scope::text[], @subject::text[]) a(scope, subject))
select x.scope, x.subject, x.kind, x.window_s, coalesce(sum(u.n) filter (where u.at > b.bucket - 62), 0)::bigint
from asked join usage_window x using (scope, subject)
	cross join lateral (select greatest(floor(extract(epoch from clock_timestamp()) * 60 / x.window_s)::bigint, x.at[cardinality(x.at)]) as bucket) b
	left join lateral unnest(x.at, x.n) u(at, n) on true
group by x.scope, x.subject, x.kind, x.window_s
union all
select a.scope, a.subject, 'sessions', 0, count(*)
from asked a join live_session s on a.subject = case a.scope when 'user' then s.user_id::text when 'domain' then s.domain else s.credential_id::text end
where exists (select from live_epoch e where e.epoch = s.epoch)
group by a.scope, a.subject
