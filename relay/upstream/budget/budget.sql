-- Leases and the use of the budgets of upstreams (lease.go, usage.go); the functions are in
-- migrations/0010_budget.sql.

-- name: lease
-- Is durable before anything of a portion is spent.
select nth, given, bucket, lease, remains, others, last, clock, free_at, free_n, durably()
from lease_budget(@epoch, @upstream::text[], @setting::text[], @kind::text[], @window::integer[], @zone::text[], @most::bigint[],
	@from::bigint[], @back::bigint[], @spent::bigint[], @keep::bigint[], @need::bigint[], @wants::bigint[])

-- name: usage
-- Reads what counts now and when the first of it is free again, for limits in the order of their
-- upstreams; and of each upstream what waits, and when the last has its turn.
with w as materialized (
	select x.name, r.n, r.last from (select distinct y.name from unnest(@upstream::text[]) y(name)) x
	cross join lateral (select count(*) as n, sane_time(max(r.next_attempt_at)) as last from recipient r
		where r.waits_for is not null and r.waits_for = any(budget_ways(x.name))
			and r.owner is null and r.held_at is null) r)
select coalesce(sum(b.n), 0)::bigint,
	case when t.w = 0 then null when t.z = '' then to_timestamp((min(b.bucket) filter (where b.n > 0) + 1) * c.width + t.w)
		else (date '1970-01-01' + c.bucket::integer + 1)::timestamp at time zone t.z end,
	w.n, w.last, (select count(*) from live_epoch)
from unnest(@upstream::text[], @kind::text[], @window::integer[], @zone::text[]) with ordinality t(u, k, w, z, nth)
	cross join lateral budget_clock(extract(epoch from clock_timestamp())::float8, t.w, t.z) c
	join w on w.name = t.u
	left join upstream_budget b on b.upstream = t.u and b.kind = t.k and b.window_s = t.w and b.zone = t.z and (t.w = 0 or b.bucket >= c.since)
group by t.nth, t.w, t.z, c.width, c.bucket, w.n, w.last order by t.nth

-- name: visit
select -(extract(epoch from clock_timestamp() + @most::interval) * 1000000)::bigint

-- name: zone
select exists (select from pg_timezone_names where name = @zone)
