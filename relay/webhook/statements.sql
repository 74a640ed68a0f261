-- The statements about webhooks. All times are those of the database's clock. The column at_once is the
-- concurrency of a webhook.

-- name: lease
-- Makes leases longer that end soon, and takes some that nobody has. One that is far too long was given before
-- the clock was set back.
with free as materialized (select id from webhook where state = 'active'
		and (owner is null or lease_until not between clock_timestamp() and clock_timestamp() + @span::interval * 10)
	order by id limit @more for update skip locked)
update webhook w set owner = @owner, lease_until = clock_timestamp() + @span::interval
where w.state = 'active' and (w.owner = @owner and w.lease_until not between clock_timestamp() + @span::interval * 0.7 and clock_timestamp() + @span::interval * 10
	or w.id in (select id from free) and (w.owner is null or w.lease_until not between clock_timestamp() and clock_timestamp() + @span::interval * 10))

-- name: leased
-- The webhooks that a process may send for, each with whether an event waits whose time has come: the
-- first by the index says so, however many wait.
select id, coalesce(user_id, 0), name, url, kinds, at_once, per_minute, secret, coalesce(old_until > clock_timestamp(), false),
	coalesce((select r.next_at <= clock_timestamp() from webhook_retry r where r.webhook_id = w.id order by r.next_at limit 1), false)
from webhook w where owner = @owner and state = 'active' and lease_until > clock_timestamp()

-- name: release
update webhook set owner = null, lease_until = null where owner = @owner

-- name: look
-- A process asks before it sends: for the place, and whether nothing is to be sent for now.
select cursor, lenient, failures, coalesce(wait_until between clock_timestamp() and clock_timestamp() + @longest::interval, false)
from webhook w where id = @id and owner = @owner and state = 'active'

-- name: due
-- Reads as many as fit. An index finds what is earlier than now(). It does not for clock_timestamp(), which
-- may change while a statement runs: all that waits would be read.
select event_id, kind, body, tries from (
	select event_id, kind, body, tries, next_at, sum(octet_length(body)) over (order by next_at, event_id) - octet_length(body) as before from (
		select event_id, kind, body, tries, next_at from webhook_retry
		where webhook_id = @id and next_at <= now() order by next_at limit @most) r) s
where before < @octets order by next_at

-- name: settle
-- Writes what became of tries, unless another process sends for the webhook now. An admin may have
-- paused it meanwhile; it stays so.
update webhook set cursor = @cursor, lenient = @lenient, place_at = greatest(place_at, @place_at), failures = @failures,
	given_up = given_up + @given_up, wait_until = clock_timestamp() + nullif(@wait::interval, '0'),
	state = case when @reason <> '' and state = 'active' then 'disabled' else state end,
	reason = case when @reason <> '' and state = 'active' then @reason else reason end
where id = @id and owner = @owner returning true

-- name: done
delete from webhook_retry where webhook_id = @id and event_id = any(@events::uuid[])

-- name: again
insert into webhook_retry as r (webhook_id, event_id, kind, body, tries, status, error, next_at)
select @id, u.event_id, u.kind, u.body, u.tries, u.status, u.error, clock_timestamp() + u.pause
from unnest(@events::uuid[], @kinds::text[], @bodies::text[], @tries::int[], @status::int[], @errors::text[], @pauses::interval[])
	u(event_id, kind, body, tries, status, error, pause)
on conflict (webhook_id, event_id) do update set tries = excluded.tries, status = excluded.status, error = excluded.error, next_at = excluded.next_at

-- name: tried
insert into webhook_try (webhook_id, event_id, kind, status, took_ms, error, answer)
select @id, u.* from unnest(@events::uuid[], @kinds::text[], @status::int[], @ms::int[], @errors::text[], @answers::text[])
	u(event_id, kind, status, took_ms, error, answer)

-- name: trim
delete from webhook_try where webhook_id = @id
	and id < (select id from webhook_try where webhook_id = @id order by id desc offset @most - 1 limit 1)

-- name: place
-- Moves on over events that the webhook does not want.
update webhook set cursor = @cursor, lenient = @lenient, place_at = greatest(place_at, @place_at) where id = @id and owner = @owner

-- name: gone
-- Notes that retention has deleted events that the webhook has not had.
update webhook set lenient = true, gone_until = @until, gone_at = clock_timestamp() where id = @id and owner = @owner

-- name: expire
-- Gives up what has waited for too long although its webhook is active. An event with a later time than any
-- pause gives got it before the clock was set back.
with early as (update webhook_retry set next_at = clock_timestamp() where webhook_id = @id and next_at > clock_timestamp() + @longest::interval),
old as (delete from webhook_retry r where r.webhook_id = @id and r.first_at < clock_timestamp() - @keep::interval
	and exists (select from webhook w where w.id = @id and w.owner = @owner) returning 1)
update webhook set given_up = given_up + (select count(*) from old) where id = @id and exists (select from old)
returning (select count(*) from old)

-- name: list
-- All webhooks. A webhook is behind by the age of the oldest event that waits, in the feed or for another try.
select w.id, w.name, w.url, coalesce(u.name, ''), w.kinds, w.state, w.reason, w.at_once, w.per_minute, w.failures, w.given_up, w.created_at,
	w.wait_until, w.gone_until, w.gone_at, w.old_until, coalesce(r.waiting, 0),
	greatest(0, extract(epoch from clock_timestamp() - least(w.place_at, r.oldest)))::float8
from webhook w left join app_user u on u.id = w.user_id
	left join lateral (select count(*) as waiting, min(first_at) as oldest from webhook_retry x where x.webhook_id = w.id) r on true
where @name = '' or w.name = @name
order by w.name

-- name: tries
select event_id, kind, at, status, took_ms, error, answer from webhook_try where webhook_id = @id order by id desc limit @most

-- name: counts
select count(*), count(*) filter (where user_id = @user_id) from webhook

-- name: add
insert into webhook (name, url, user_id, kinds, at_once, per_minute, cursor, secret)
values (@name, @url, nullif(@user_id::bigint, 0), @kinds, @concurrency, @per_minute, @cursor, @secret)
on conflict (name) do nothing

-- name: find
select id, coalesce(user_id, 0), url, kinds, state, secret, coalesce(old_until > clock_timestamp(), false), old_until from webhook where name = @name for update

-- name: set
update webhook set at_once = coalesce(@concurrency, at_once), per_minute = coalesce(@per_minute, per_minute) where id = @id

-- name: rotate
update webhook set secret = @secret, old_until = clock_timestamp() + @keep::interval where id = @id returning old_until

-- name: pause
update webhook set state = 'paused', reason = '' where id = @id

-- name: resume
-- Sends again: all that waits is as if it had not been tried.
with again as (update webhook_retry set tries = 0, first_at = clock_timestamp(), next_at = clock_timestamp() where webhook_id = @id)
update webhook set state = 'active', reason = '', failures = 0, wait_until = null where id = @id

-- name: remove
delete from webhook where id = @id

-- name: room
select count(*) from webhook_retry where webhook_id = @id

-- name: replay
insert into webhook_retry as r (webhook_id, event_id, kind, body, tries, next_at)
select @id, u.*, 0, clock_timestamp() from unnest(@events::uuid[], @kinds::text[], @bodies::text[]) u(event_id, kind, body)
on conflict (webhook_id, event_id) do update set tries = 0, first_at = clock_timestamp(), next_at = clock_timestamp()
