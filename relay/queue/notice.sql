-- Notices: which are due, and that they were told (notice.go).

-- name: claim_notices
-- Takes rows whose notice is due, and the siblings for which the same is due or gathered, so
-- that one notice tells of all of them. A delay notice of a row whose lifetime is over is left to
-- the failure. As in claim, coalesce keeps the siblings from being looked for among all that is
-- due. A fault of a host is the relay's if that is an upstream's.
with pick as materialized (
	select message_id, state from recipient
	where notice_at is not null and owner is null and notice_at <= now() and held_at is null
	order by notice_at limit @messages
	for update skip locked),
rows as materialized (
	select r.message_id, r.n from (select distinct message_id, state from pick) p
		join recipient r on r.message_id = p.message_id and r.state = p.state
	where coalesce(r.owner, 0) = 0 and r.held_at is null and (r.state <> 'waiting' or r.notice_at <= now())
	for update of r skip locked)
update recipient r set owner = @epoch, dot_possible = false
from rows where r.message_id = rows.message_id and r.n = rows.n and coalesce(r.owner, 0) = 0
returning r.message_id, case when r.state = 'failed' and r.doubt is not null then 'doubt' else r.state end, r.n, r.local, r.domain, r.orcpt_type, r.orcpt, r.reply_code, r.reply_enhanced, r.reply_text,
	r.remote_mta, sane_time(r.last_attempt_at), sane_time(r.expires_at), sane_time(r.accepted_at),
	case when r.scope = 'host' and r.last_upstream in ('', 'mx') then '' else coalesce(r.scope, '') end, r.last_upstream not in ('', 'mx')

-- name: first_notice
-- Names the row that claim_notices would begin with.
select message_id, n from recipient
	where notice_at is not null and owner is null and notice_at <= now() and held_at is null
	order by notice_at limit @rows
	for update skip locked

-- name: told_before
-- Says of each message that has had a notice of the kind how many they were, the last of them,
-- whether recipients of it are under way, and how many notices the user has had since @since that
-- told of a message again.
select o.i, count(*), max(t.message_id::text)::uuid, exists (select from recipient r where r.message_id = o.about and r.state = 'waiting'),
	(select count(*) from notice u where u.user_id = o.user_id and u.again and u.message_id >= @since::uuid)
from unnest(@about::uuid[], @kind::text[], @user_id::bigint[]) with ordinality o(about, kind, user_id, i)
	join notice t on t.about = o.about and t.kind = o.kind
group by o.i, o.about, o.user_id

-- name: told
-- Marks rows as told, by the notice if there is one: what is finished goes, a delayed row waits
-- on.
with o as materialized (select message_id, n from recipient
	where message_id = @message_id and n = any(@n::int[]) and owner is not distinct from @epoch for update),
gone as (delete from recipient r using o where r.message_id = o.message_id and r.n = o.n and r.state <> 'waiting' returning r.message_id, r.n),
back as (update recipient r set owner = null, notice_at = null, delay_noticed = true, held_at = held_since(r.message_id, r.held_at) from o
	where r.message_id = o.message_id and r.n = o.n and r.state = 'waiting'
	returning r.message_id, r.n, r.local, r.domain, r.held_at, r.doubt),
held as (@tell_held),
h as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text)
	select r.message_id, r.n, clock_timestamp(), @epoch, 'noticed', r.local, r.domain, @node, @text
	from o join recipient r on r.message_id = o.message_id and r.n = o.n
	on conflict do nothing),
t as (insert into notice (message_id, about, kind, user_id, again) select @notice, @message_id, @kind, @user_id, @again where @notice::uuid is not null),
b as (delete from body where message_id = @message_id and exists (select from gone)
	and (select count(*) from gone) = (select count(*) from recipient r where r.message_id = @message_id))
select (select count(*) from o), durably()

-- name: notice_exists
-- Tells that an earlier try to commit a notice has succeeded after all. It writes something
-- then, so that its own commit waits for the standbys behind that one's.
select stored.it, durably(),
	case when stored.it then pg_logical_emit_message(true, 'postern', 'a notice in doubt')::text end
from (select exists (select from message where id = @notice) as it) stored

-- name: disown
-- Lets a recipient wait that was born owned in this transaction.
update recipient set owner = null, held_at = held_since(message_id, held_at) where message_id = @message_id and owner is not distinct from @epoch

-- name: release_notice
-- Gives rows back whose notice could not be made.
with back as (update recipient set owner = null, notice_at = now() + @wait::interval,
	held_at = case when state = 'waiting' then held_since(message_id, held_at) else held_at end
where message_id = @message_id and n = any(@n::int[]) and owner is not distinct from @epoch and notice_at is not null
returning message_id, n, local, domain, held_at, doubt),
told as (@tell_held)
select count(*) from back
