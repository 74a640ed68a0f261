-- The DKIM keys (key.go, ring.go, look.go, admin.go). @now is the database's clock as its caller has
-- asked for it.

-- name: poll
select n, clock_timestamp() from dkim_version

-- name: keys
-- Reads the keys of a domain, '' for all.
select k.domain, k.selector, k.algorithm, k.state, k.since, k.created_at, coalesce(d.every_days, 0), k.gone, k.looked_at, k.found, k.public, k.looks
from dkim_key k join dkim_domain d on d.domain = k.domain
where @domain = '' or k.domain = @domain
order by k.domain, k.created_at, k.selector

-- name: private
-- Reads the private halves of keys that may sign, but for those that are known, as domain and selector.
select domain, selector, sealed from dkim_key
where state in ('active', 'retiring') and domain || ' ' || selector <> all(@known::text[])

-- name: take
-- Takes the lease of domains whose records are due for a look.
update dkim_domain set lease = lease + 1, holder = @node, lease_until = @now::timestamptz + @span::interval
where domain in (select d.domain from dkim_domain d
	where d.next_look_at <= @now::timestamptz and (d.lease_until is null or d.lease_until <= @now::timestamptz)
	order by d.next_look_at limit @most for update skip locked)
returning domain, lease

-- name: lock
-- Keeps a domain and its keys as they are until the transaction ends; a lease other than 0 must
-- still be the last.
select from dkim_domain where domain = @domain and (@lease::bigint = 0 or lease = @lease) for update

-- name: done
-- Ends a lease.
update dkim_domain set next_look_at = @next, holder = '', lease_until = null where domain = @domain and lease = @lease

-- name: write
update dkim_key set state = @state, since = @since, looks = @looks, gone = @gone, looked_at = @looked, found = @found,
	sealed = case when @state = 'retired' then null else sealed end
where domain = @domain and selector = @selector

-- name: insert
insert into dkim_key (domain, selector, algorithm, public, sealed, state, created_at, since)
values (@domain, @selector, @algorithm, @public, @sealed, @state, @now, @now)
returning durably()

-- name: delete
delete from dkim_key where domain = @domain and selector = @selector

-- name: add_domain
insert into dkim_domain (domain, next_look_at) values (@domain, @now) on conflict do nothing

-- name: set_every
update dkim_domain set every_days = nullif(@days::integer, 0) where domain = @domain

-- name: hurry
update dkim_domain set next_look_at = @now where domain = @domain

-- name: remove_domain
-- Removes a domain that has no keys any more.
delete from dkim_domain where domain = @domain and not exists (select from dkim_key k where k.domain = @domain)

-- name: tell
-- Tells the feed of events.
insert into event (kind, object, detail) select 'dkim.key', @domain, jsonb_build_object('selector', @selector::text, 'change', @change::text)

-- name: changed
update dkim_version set n = n + 1
