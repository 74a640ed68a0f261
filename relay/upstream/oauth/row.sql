-- The tokens of upstream accounts (row.go).

-- name: read
-- Reads what the nodes know of a token, with times as spans by the database's clock.
select sealed, serial, coalesce(expires_at - clock_timestamp(), interval '0'), coalesce(expires_at - refreshed_at, interval '0'),
	coalesce(clock_timestamp() - refreshed_at, interval '0'), failing_since is not null, last_error, login,
	coalesce(next_try_at - clock_timestamp(), interval '0'), coalesce(lease_until > clock_timestamp(), false), holder
from upstream_token where upstream = @upstream and credential = @credential

-- name: take
-- Succeeds for one node of all that want another token than the one with this serial, and not while
-- the authority is left alone.
insert into upstream_token as t (upstream, credential, holder, lease, lease_until)
values (@upstream, @credential, @node, 1, clock_timestamp() + @span::interval)
on conflict (upstream, credential) do update set holder = excluded.holder, lease = t.lease + 1, lease_until = excluded.lease_until
where t.serial = @serial and (t.lease_until is null or t.lease_until <= clock_timestamp())
	and (t.next_try_at is null or t.next_try_at <= clock_timestamp())
returning lease, sealed

-- name: store
-- Stores access and refresh token together, durably. It may be repeated. After the lease too it
-- succeeds while the token is still the one with this serial: the refresh token of that may have
-- been spent for these. Then the lease that another node has since counts no more.
update upstream_token set sealed = @sealed, serial = lease + (lease <> @lease)::int, lease = lease + (lease <> @lease)::int,
	refreshed_at = clock_timestamp(), expires_at = clock_timestamp() + @life::interval,
	failing_since = null, last_error = '', login = false, next_try_at = null, holder = '', lease_until = null
where upstream = @upstream and credential = @credential and (lease = @lease or serial = @was)
returning serial, durably()

-- name: fail
update upstream_token set failing_since = coalesce(failing_since, clock_timestamp()), last_error = @error, login = @login,
	next_try_at = clock_timestamp() + @wait::interval, holder = '', lease_until = null
where upstream = @upstream and credential = @credential and lease = @lease

-- name: login
-- Stores what a person's login gave. A node that asks the authority meanwhile stores nothing.
insert into upstream_token as t (upstream, credential, sealed, serial, lease, refreshed_at, expires_at)
values (@upstream, @credential, @sealed, 1, 1, clock_timestamp(), clock_timestamp() + @life::interval)
on conflict (upstream, credential) do update set sealed = excluded.sealed, serial = t.lease + 1, lease = t.lease + 1,
	refreshed_at = excluded.refreshed_at, expires_at = excluded.expires_at, failing_since = null, last_error = '', login = false,
	next_try_at = null, holder = '', lease_until = null
returning durably()

-- name: states
select upstream, credential, coalesce(expires_at, 'epoch'), coalesce(failing_since, 'epoch'),
	last_error, login, coalesce(next_try_at, 'epoch')
from upstream_token order by upstream

-- name: forget
-- Deletes the tokens of former settings of an account.
delete from upstream_token where upstream = @upstream
