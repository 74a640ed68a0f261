-- The statements about entries. Those about outcomes run in the transaction that settles them, after
-- the history is written, and wait for no row: an entry that another transaction has locked stays as it is.

-- name: find
-- The entry that holds for an address: that of all users before the user's own.
select s.user_id, s.address, s.source, s.reason, s.reply, s.message_id, s.added_at, s.expires_at, s.hits, s.last_hit_at
from suppression s
where s.user_id in (0, @user_id) and s.address = any(@addresses::text[]) and (s.user_id = 0 or s.address = (@addresses::text[])[1])
	and (s.expires_at is null or s.expires_at > clock_timestamp())
order by s.user_id, s.address limit 1

-- name: changes
-- Reads what transactions from @since on have added, and from which transaction on the next look has to ask:
-- all before that have ended.
select x.since::text, s.address
from (select pg_snapshot_xmin(pg_current_snapshot()) as since) x
left join lateral (select address from suppression where changed >= @since::text::xid8 limit @most) s on true

-- name: bounced
-- Adds an entry for each bounce, or prolongs the one that lives. A message that was accepted before the
-- last bounce changes nothing, and no bounce changes an admin's entry.
with bounce as (
	select distinct on (m.user_id, u.address) m.user_id, m.accepted_at, u.*
	from unnest(@message_id::uuid[], @n::int[], @at::timestamptz[], @epoch::bigint[], @address::text[], @reply::text[])
			u(message_id, n, at, epoch, address, reply)
		join message m on m.id = u.message_id and m.user_id > 0
	where exists (select from history h where h.message_id = u.message_id and h.n = u.n and h.at = u.at and h.epoch = u.epoch
		and h.result = 'failed' and not h.fenced)
	order by m.user_id, u.address, u.at),
there as materialized (
	select s.user_id, s.address from bounce b join suppression s on s.user_id = b.user_id and s.address = b.address
	order by s.user_id, s.address for update of s skip locked),
added as (insert into suppression as s (user_id, address, source, message_id, struck_at, reply, expires_at)
select b.user_id, b.address, 'bounce', b.message_id, b.at, b.reply, clock_timestamp() + @span::interval
from bounce b
where (b.user_id, b.address) in (select there.user_id, there.address from there)
	or not exists (select from suppression o where o.user_id = b.user_id and o.address = b.address)
order by b.user_id, b.address
on conflict (user_id, address) do update set
	source = 'bounce', reason = '', message_id = excluded.message_id, struck_at = excluded.struck_at, reply = excluded.reply,
	strikes = case when s.expires_at > clock_timestamp() then s.strikes + 1 else 1 end,
	added_at = case when s.expires_at > clock_timestamp() then s.added_at else clock_timestamp() end,
	expires_at = clock_timestamp() + case when s.expires_at > clock_timestamp()
		then least(@span::interval * power(2, least(s.strikes, 20)), @longest::interval) else @span::interval end,
	changed = pg_current_xact_id()
where s.expires_at <= clock_timestamp()
	or s.source = 'bounce' and s.struck_at < (select m.accepted_at from message m where m.id = excluded.message_id)
returning s.user_id, s.address, s.message_id, s.reply, s.strikes, s.expires_at)
insert into event (kind, object, user_id, detail)
select 'suppression.added', address, user_id, jsonb_build_object('by', 'bounce', 'message', message_id, 'reply', reply, 'bounces', strikes, 'expires', expires_at)
from added

-- name: delivered
-- Removes the entries of bounces that came before these deliveries.
with gone as (
	select s.user_id, s.address
	from unnest(@message_id::uuid[], @n::int[], @at::timestamptz[], @epoch::bigint[], @address::text[]) u(message_id, n, at, epoch, address)
		join message m on m.id = u.message_id
		join suppression s on s.user_id = m.user_id and s.address = u.address and s.source = 'bounce' and s.struck_at < u.at
	where exists (select from history h where h.message_id = u.message_id and h.n = u.n and h.at = u.at and h.epoch = u.epoch
		and h.result = 'delivered' and not h.fenced)
	order by s.user_id, s.address for update of s skip locked),
removed as (delete from suppression s using gone where s.user_id = gone.user_id and s.address = gone.address returning s.user_id, s.address)
insert into event (kind, object, user_id, detail) select 'suppression.removed', address, user_id, jsonb_build_object('by', 'delivery') from removed

-- name: hits
update suppression s set hits = s.hits + u.n, last_hit_at = greatest(s.last_hit_at, u.at)
from (select s.user_id, s.address, u.n, u.at
	from unnest(@user_id::bigint[], @address::text[], @n::bigint[], @at::timestamptz[]) u(user_id, address, n, at)
		join suppression s on s.user_id = u.user_id and s.address = u.address
	order by s.user_id, s.address for update of s skip locked) u
where s.user_id = u.user_id and s.address = u.address

-- name: prune
-- Deletes entries that ended a day ago, and those of removed users.
delete from suppression s using (
	select s.user_id, s.address from suppression s
	where s.expires_at < clock_timestamp() - interval '1 day'
		or s.user_id > 0 and not exists (select from app_user u where u.id = s.user_id)
	order by s.user_id, s.address limit @most for update skip locked) old
where s.user_id = old.user_id and s.address = old.address

-- name: put
-- Entries of admins, and imported ones of bounces, replace existing ones.
with put as (insert into suppression as s (user_id, address, source, reason, reply, added_at, expires_at, struck_at)
select @user_id, u.address, u.source, u.reason, u.reply, coalesce(u.added_at, clock_timestamp()), u.expires_at,
	case u.source when 'bounce' then coalesce(u.added_at, clock_timestamp()) end
from unnest(@address::text[], @source::text[], @reason::text[], @reply::text[], @added_at::timestamptz[], @expires_at::timestamptz[])
	u(address, source, reason, reply, added_at, expires_at)
order by u.address
on conflict (user_id, address) do update set source = excluded.source, reason = excluded.reason, reply = excluded.reply,
	added_at = excluded.added_at, expires_at = excluded.expires_at, struck_at = excluded.struck_at, message_id = null, strikes = 1,
	changed = pg_current_xact_id()
returning s.address, s.reason, s.expires_at)
insert into event (kind, object, user_id, detail)
select 'suppression.added', address, nullif(@user_id::bigint, 0), jsonb_build_object('by', 'admin', 'reason', reason, 'expires', expires_at) from put where not @imported
union all
select 'suppression.added', '', nullif(@user_id::bigint, 0), jsonb_build_object('by', 'import', 'count', count(*)) from put where @imported having count(*) > 0

-- name: remove
with gone as (delete from suppression where user_id = @user_id and address = any(@addresses::text[]) returning address),
told as (insert into event (kind, object, user_id, detail)
	select 'suppression.removed', address, nullif(@user_id::bigint, 0), jsonb_build_object('by', 'admin') from gone)
select address from gone

-- name: list
-- The latest entries of a user, or those of an address.
select s.user_id, s.address, s.source, s.reason, s.reply, s.message_id, s.added_at, s.expires_at, s.hits, s.last_hit_at
from suppression s
where (s.expires_at is null or s.expires_at > clock_timestamp())
	and (@any_user::boolean or s.user_id = @user_id) and (@address = '' or s.address = @address)
order by s.added_at desc, s.address limit @most

-- name: page
-- The next entries of a user in the order of their addresses.
select s.user_id, s.address, s.source, s.reason, s.reply, s.message_id, s.added_at, s.expires_at, s.hits, s.last_hit_at
from suppression s
where s.user_id = @user_id and s.address > @after and (s.expires_at is null or s.expires_at > clock_timestamp())
order by s.address limit @most

-- name: count
select count(*) from suppression where user_id = @user_id and (expires_at is null or expires_at > clock_timestamp())
