-- The policies of MTA-STS and the overrides (table.go).

-- name: read
-- Reads what is known of a domain, with times as spans by the database's clock.
select coalesce(p.id, ''), coalesce(p.mode, ''), coalesce(p.mx, '{}'), coalesce(p.expires_at - clock_timestamp(), interval '0'),
	coalesce(p.used_at < clock_timestamp() - interval '1 day', false), coalesce(p.tried_id, ''), coalesce(p.last_error, ''),
	coalesce(p.due_at - clock_timestamp(), interval '0'), coalesce(p.lease_until > clock_timestamp(), false), coalesce(p.holder, ''),
	coalesce(o.level, ''), coalesce(o.reason, ''), coalesce(o.set_by, ''), coalesce(o.set_at, 'epoch'), coalesce(o.expires_at, 'epoch'),
	coalesce(o.expires_at - clock_timestamp(), interval '0')
from (values (@domain::text)) d(domain)
left join sts_policy p on p.domain = d.domain
left join transport_override o on o.domain = d.domain and o.expires_at > clock_timestamp()

-- name: use
-- Notes that a policy is in use, so that it is renewed.
update sts_policy set used_at = clock_timestamp() where domain = @domain and used_at < clock_timestamp() - interval '1 day'

-- name: take
-- Succeeds for one node of all that want the policy of this id, and not before it is due.
insert into sts_policy as p (domain, holder, lease, lease_until)
values (@domain, @node, 1, clock_timestamp() + @span::interval)
on conflict (domain) do update set holder = excluded.holder, lease = p.lease + 1, lease_until = excluded.lease_until
where (p.lease_until is null or p.lease_until <= clock_timestamp())
	and (@now::boolean or p.due_at <= clock_timestamp() or p.tried_id <> @id)
returning lease

-- name: store
update sts_policy set id = @id, mode = @mode, mx = @mx, fetched_at = clock_timestamp(), expires_at = clock_timestamp() + @age::interval,
	tried_id = @id, failing_since = null, last_error = '', due_at = clock_timestamp() + @wait::interval, holder = '', lease_until = null
where domain = @domain and lease = @lease

-- name: fail
-- Records why there is no new policy; one that is held stays, and is tried for again at its end.
update sts_policy set tried_id = @id, failing_since = coalesce(failing_since, clock_timestamp()), last_error = @error,
	due_at = clock_timestamp() + case when expires_at > clock_timestamp() then greatest(least(@held::interval, expires_at - clock_timestamp()), @none::interval)
		else @none::interval end,
	holder = '', lease_until = null
where domain = @domain and lease = @lease

-- name: due
-- Lists policies in use that are to be renewed. One that nobody used for a month, or for longer if it
-- is kept for longer, is left to its end.
select domain from sts_policy
where mode is not null and due_at <= clock_timestamp() and (lease_until is null or lease_until <= clock_timestamp())
	and expires_at > clock_timestamp() and used_at > clock_timestamp() - greatest(interval '30 days', expires_at - fetched_at)
order by due_at limit @most

-- name: prune
-- Deletes what has ended, or never was.
delete from sts_policy where coalesce(expires_at, due_at) < clock_timestamp() - interval '1 day'
	and (lease_until is null or lease_until <= clock_timestamp())

-- name: policies
select domain, id, case when expires_at > clock_timestamp() then mode else '' end, mx, coalesce(fetched_at, 'epoch'),
	coalesce(expires_at, 'epoch'), coalesce(failing_since, 'epoch'), last_error
from sts_policy where (expires_at > clock_timestamp() or last_error <> '') and (@domain::text = '' or domain = @domain)
order by domain limit @most

-- name: ending
-- Lists policies that end within a time, or have ended, since they cannot be renewed.
select domain, id, case when expires_at > clock_timestamp() then mode else '' end, mx, coalesce(fetched_at, 'epoch'), expires_at,
	failing_since, last_error
from sts_policy where last_error <> '' and mode <> 'none' and expires_at < clock_timestamp() + @span::interval
order by expires_at limit @most

-- name: overrides
select domain, level, reason, set_by, set_at, expires_at
from transport_override where expires_at > clock_timestamp() and (@domain::text = '' or domain = @domain)
order by domain limit @most

-- name: override
insert into transport_override as o (domain, level, reason, set_by, expires_at)
values (@domain, @level, @reason, @actor, clock_timestamp() + @span::interval)
on conflict (domain) do update set level = excluded.level, reason = excluded.reason, set_by = excluded.set_by,
	set_at = clock_timestamp(), expires_at = excluded.expires_at
returning expires_at

-- name: clear
-- Deletes the override of a domain, and those that have ended.
with ended as (delete from transport_override where expires_at <= clock_timestamp() and domain <> @domain)
delete from transport_override where domain = @domain and expires_at > clock_timestamp()
