-- History, and the smaller tables (retention.go).

-- name: forget
-- Looks at the next messages before @first_kept, and deletes those that have no recipient left and
-- to which nothing happened since @since, with at most @attempts attempts. The next batch is @rest
-- later; after the last one, @every later. Attempts without a message, which came when it was
-- deleted, are met too. The feed hears up to where it is no longer whole.
with recursive at as materialized (select past, began_at from history_walk where next_at <= clock_timestamp() for update skip locked),
w(id, i) as (
	select least((select m.id from message m where m.id > at.past order by m.id limit 1),
		(select a.message_id from history a where a.message_id > at.past order by a.message_id limit 1)), 1 from at
	union all
	select least((select m.id from message m where m.id > w.id order by m.id limit 1),
		(select a.message_id from history a where a.message_id > w.id order by a.message_id limit 1)), w.i + 1
	from w where w.id < @first_kept and w.i < @messages),
seen as materialized (select id from w where id < @first_kept),
old as materialized (select id from seen where not exists (select from recipient r where r.message_id = seen.id)
	and not exists (select from history a where a.message_id = seen.id and a.at >= @since)),
pick as materialized (select a.message_id, a.n, a.at, a.epoch from old join history a on a.message_id = old.id limit @attempts),
looked as (select count(*) as n, (select count(*) from pick) = @attempts as again from seen),
a as (delete from history a using pick p where a.message_id = p.message_id and a.n = p.n and a.at = p.at and a.epoch = p.epoch returning a.feed_at, a.at),
m as (delete from message m using old, looked where m.id = old.id and not looked.again returning m.feed_at, m.accepted_at as at),
f as (update feed_state s set gone = l.feed_at, gone_at = l.at
	from (select feed_at, at from (select feed_at, at from a union all select feed_at, at from m) both_of order by feed_at desc limit 1) l where l.feed_at > s.gone),
t as (delete from notice t using old, looked where t.message_id = old.id and not looked.again),
step as (update history_walk h set
		past = case when looked.again then at.past
			when looked.n < @messages and at.began_at < clock_timestamp() - interval '1 hour' then '00000000-0000-0000-0000-000000000000'
			else coalesce((select id from seen order by id desc limit 1), at.past) end,
		began_at = case when not looked.again and looked.n < @messages and at.began_at < clock_timestamp() - interval '1 hour'
			then clock_timestamp() else at.began_at end,
		next_at = clock_timestamp() + case when looked.again or looked.n = @messages then @rest::interval else @every::interval end
	from at, looked)
select looked.again or looked.n = @messages, (select count(*) from old), set_config('synchronous_commit', 'off', true) from at, looked

-- name: unread
-- Before what is deleted: older than @keep, but what an active webhook has not had is kept for 96 hours.
-- An event may become visible minutes after its time.
select least(clock_timestamp() - @keep::interval, (select greatest(w.oldest - interval '10 minutes', clock_timestamp() - interval '96 hours')
	from (select min(place_at) as oldest from webhook where state = 'active') w where w.oldest is not null))

-- name: forget_nodes
-- Deletes dead epochs that no row names any more. They are remembered for longer than any commit is
-- in flight.
delete from node where reaped_at < clock_timestamp() - interval '1 hour'
	and not exists (select from recipient r where r.owner = node.epoch)

-- name: forget_holds
-- Ends the holds of credentials that hold nothing: a credential that was revoked sends no more, and
-- of what it had sent nothing is held or may come back to be held. Holds of users stay, for users
-- go on.
delete from hold h where h.credential_id <> 0 and h.made_at < clock_timestamp() - interval '2 minutes'
	and not exists (select from recipient r join message m on m.id = r.message_id
		where r.held_at is not null and r.user_id = h.user_id and m.credential_id = h.credential_id)
	and not exists (select from recipient r join message m on m.id = r.message_id
		where r.owner is not null and m.user_id = h.user_id and m.credential_id = h.credential_id)

-- name: forget_activity
-- Deletes hours that anomaly detection no longer reads.
delete from activity where (user_id, hour) in (
	select user_id, hour from activity where hour < now() - interval '14 days' order by hour limit @rows for update skip locked)

-- name: forget_duplicates
-- Deletes keys by which no copy is recognised any more. The table is read whole: an index by time
-- would be written with each message.
delete from duplicate where ctid = any(array(
	select ctid from duplicate where until < clock_timestamp() limit @rows for update skip locked))

-- name: forget_correspondents
-- Deletes addresses to which their users have not written for long. That they did is written down
-- once a month.
delete from correspondent where (user_id, recipient) in (
	select user_id, recipient from correspondent where seen_on < current_date - interval '30 days' - @keep::interval
	order by seen_on limit @rows for update skip locked)

-- name: forget_events
-- Deletes events, as forget does with history.
with old as (select id, feed_at, at from event where at < @before order by at limit @rows for update skip locked),
f as (update feed_state s set gone = l.feed_at, gone_at = l.at from (select feed_at, at from old order by feed_at desc limit 1) l where l.feed_at > s.gone)
delete from event where id in (select id from old)

-- name: forget_marks
-- Deletes marks of the feed but the last of each incarnation, of which there is one for each start of
-- the database's server.
delete from feed_mark m where (m.incarnation, m.feed_at) in (
	select o.incarnation, o.feed_at from feed_mark o where o.at < @before
		and exists (select from feed_mark later where later.incarnation = o.incarnation and later.feed_at > o.feed_at)
	order by o.at limit @rows for update skip locked)

-- name: forget_users
-- Deletes the names of users who were removed, when their mail is long gone.
delete from former_user where user_id in (
	select user_id from former_user where removed_at < @before::timestamptz - interval '30 days'
	order by removed_at limit @rows for update skip locked)

-- name: forget_usage
-- Looks at the next windows of limits after a key, deletes those in which nothing counts any more,
-- and returns the last key. (An index that finds them would be written with each charge.)
with looked as materialized (select scope, subject, kind, window_s from usage_window
	where (scope, subject, kind, window_s) > (@scope, @subject, @kind, @window_s) order by scope, subject, kind, window_s limit @rows),
gone as (delete from usage_window where (scope, subject, kind, window_s) in (
	select x.scope, x.subject, x.kind, x.window_s from looked l
		join usage_window x on x.scope = l.scope and x.subject = l.subject and x.kind = l.kind and x.window_s = l.window_s
	where coalesce(x.at[cardinality(x.at)], 0) < floor(extract(epoch from clock_timestamp()) * 60 / x.window_s)::bigint - 120
	for update of x skip locked))
select scope, subject, kind, window_s from looked order by scope desc, subject desc, kind desc, window_s desc limit 1
