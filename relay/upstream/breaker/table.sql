-- The breakers of upstreams (table.go).

-- name: states
-- Reads the breakers of all upstreams, with times as spans by the database's clock.
select u.name, case when b.opened_at is null then 'closed' when b.lease_until > clock_timestamp() then 'half-open' else 'open' end,
	coalesce(b.opening, 0), clock_timestamp() - coalesce(b.opened_at, b.closed_at), coalesce(b.opened_by, ''), coalesce(b.stage, ''),
	coalesce(b.scope, ''), coalesce(b.reply, ''), coalesce(b.sender, ''), coalesce(b.failures, 0), b.next_probe_at - clock_timestamp(),
	case when b.lease_until > clock_timestamp() then b.holder else '' end, u.paused_at is not null, coalesce(b.account, false), coalesce(b.past_probe, false)
from upstream u left join upstream_breaker b on b.upstream = u.name order by u.name

-- name: open
-- Succeeds if it was closed, and another node has not just found that this one's own trouble kept
-- the upstream from it. One that a probe closed a moment ago goes on with its waits. A probe that
-- is under way counts no more.
with opened as (insert into upstream_breaker as b (upstream, opening, opened_at, opened_by, stage, scope, reply, sender, account, past_probe, failures, next_probe_at)
select name, 1, clock_timestamp(), @node, @stage, @scope, @reply, @sender, @account, @past_probe, 0, clock_timestamp() + (@waits::interval[])[1]
from upstream where name = @upstream
on conflict (upstream) do update set opening = b.opening + 1, opened_at = excluded.opened_at, opened_by = excluded.opened_by,
	stage = excluded.stage, scope = excluded.scope, reply = excluded.reply, sender = excluded.sender,
	account = excluded.account, past_probe = excluded.past_probe,
	failures = case when b.by_probe and b.closed_at > clock_timestamp() - @recently::interval then b.failures + 1 else 0 end,
	next_probe_at = clock_timestamp() + (@waits::interval[])[least(cardinality(@waits::interval[]),
		case when b.by_probe and b.closed_at > clock_timestamp() - @recently::interval then b.failures + 2 else 1 end)],
	lease = b.lease + 1, holder = '', lease_until = null
where b.opened_at is null
	and (@account or b.opened_by <> @node or b.closed_by = @node or b.closed_at <= clock_timestamp() - @recently::interval)
returning b.opening),
told as (insert into event (kind, object, detail)
	select 'breaker.open', @upstream, jsonb_build_object('node', @node::text, 'stage', @stage::text, 'scope', @scope::text, 'reply', @reply::text) from opened)
select opening from opened

-- name: take
-- Succeeds for one node of all, when the probe is due. A paused upstream is left alone.
update upstream_breaker b set lease = b.lease + 1, holder = @node, lease_until = clock_timestamp() + @span::interval
from upstream u
where u.name = b.upstream and u.paused_at is null and b.upstream = @upstream and b.next_probe_at <= clock_timestamp()
	and (b.lease_until is null or b.lease_until <= clock_timestamp())
returning b.lease

-- name: fail
-- Keeps it open after a probe that did not get through.
update upstream_breaker set failures = failures + 1, stage = @stage, scope = @scope, reply = @reply,
	account = account or @account, past_probe = past_probe or @past_probe,
	next_probe_at = clock_timestamp() + (@waits::interval[])[least(cardinality(@waits::interval[]), failures + 2)],
	holder = '', lease_until = null
where upstream = @upstream and lease = @lease and opened_at is not null
returning lease

-- name: give_back
-- Ends the lease of a probe that could not be made.
update upstream_breaker set next_probe_at = clock_timestamp() + @wait::interval, holder = '', lease_until = null
where upstream = @upstream and lease = @lease and opened_at is not null
returning lease

-- name: close
-- A probe closes by its lease, a delivery the opening that it knew.
with closed as (update upstream_breaker set opened_at = null, next_probe_at = null, closed_at = clock_timestamp(), closed_by = @node,
	by_probe = @lease <> 0, lease = lease + 1, holder = '', lease_until = null
where upstream = @upstream and opened_at is not null and (lease = @lease or @lease = 0 and opening = @opening)
returning opening),
told as (insert into event (kind, object, detail) select 'breaker.closed', @upstream, jsonb_build_object('node', @node::text, 'by_probe', @lease <> 0) from closed)
select opening from closed

-- name: hurry
select hurry_breaker(@upstream)
