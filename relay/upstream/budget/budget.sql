-- Portions of the budgets of upstreams (lease.go); the function lease_budget is in
-- migrations/0010_budget.sql.

-- name: lease
-- Is durable before anything of a portion is spent.
select nth, portion, serial, fresh, lease, remains, waiting, clock, free_at, free_n,
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)
from lease_budget(@epoch, @upstream::text[], @setting::text[], @kind::text[], @window::integer[], @zone::text[], @most::bigint[],
	@spent::bigint[], @back::bigint[], @need::bigint[], @wants::bigint[], @waits::boolean[], @serial::bigint[])

-- name: last_turn
-- Reads when the last has its turn of what waits for an upstream's budget, and by the index alone.
select extract(epoch from (select max(next_attempt_at) from recipient where waits_for = way and owner is null))::float8
from unnest(@ways::text[]) with ordinality w(way, nth) order by nth

-- name: usage
-- Reads what counts now, what each node may spend of it, when the first of what was spent comes
-- back, and what waits.
with waiting as materialized (
	select u.upstream, (select count(*) from recipient r where r.waits_for = 'budget ' || u.upstream and r.owner is null) as n
	from (select distinct upstream from upstream_budget) u)
select x.upstream, x.kind, x.window_s, x.zone,
	coalesce((select sum(u.n) from unnest(x.at, x.n) u(at, n) where u.at > b.bucket - b.counts), 0)::bigint,
	case x.zone when '' then (select to_timestamp((min(u.at) + b.counts) * b.width) from unnest(x.at, x.n) u(at, n) where u.at > b.bucket - b.counts and u.n > 0)
		else (date '1970-01-01' + b.bucket::integer + 1)::timestamp at time zone x.zone end,
	x.waits_from,
	array(select coalesce((select e.name from live_epoch e where e.epoch = p.epoch), '') from upstream_portion p
		where p.upstream = x.upstream and p.kind = x.kind and p.window_s = x.window_s and p.zone = x.zone and p.n > 0 order by p.epoch),
	array(select p.n from upstream_portion p
		where p.upstream = x.upstream and p.kind = x.kind and p.window_s = x.window_s and p.zone = x.zone and p.n > 0 order by p.epoch),
	w.n, (select count(*) from live_epoch)
from upstream_budget x join waiting w on w.upstream = x.upstream
	cross join lateral budget_clock(extract(epoch from clock_timestamp())::float8, greatest(x.window_s, 1), x.zone) b

-- name: zones
-- Finds the zones that the database does not know.
select z from unnest(@zones::text[]) z where z not in (select name from pg_timezone_names)
