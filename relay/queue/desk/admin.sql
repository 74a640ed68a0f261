-- The database's knowledge of messages (admin.go).

-- part: entry
r.message_id, r.n, @row_state,
	coalesce(m.sender_local, ''), coalesce(m.sender_domain, ''), r.local, r.domain, coalesce(m.size, 0), sane_time(r.accepted_at),
	sane_time(r.next_attempt_at), sane_time(r.expires_at), sane_time(r.held_at), coalesce(r.set_aside, ''), r.attempts, sane_time(r.last_attempt_at),
	r.reply_code, r.reply_enhanced, r.reply_text, r.remote_mta, coalesce(r.owner, 0), coalesce(node.name, ''), r.possible_duplicate,
	coalesce(m.user_id, 0), coalesce(m.credential_id, 0), r.last_upstream, coalesce(r.stays_with, ''), coalesce(r.doubt, '')
from recipient r left join message m on m.id = r.message_id left join node on node.epoch = r.owner

-- name: list
-- Lists live recipients in order of acceptance.
select @entry
where @chosen
	and (r.message_id, r.n) > (@after_id, @after_n) order by r.message_id, r.n limit @rows

-- name: show
-- list for one message.
select @entry
where r.message_id = @id order by r.n

-- name: staying
-- Counts what may take no other way (type queue.Recipient).
select count(*) from recipient where stays_with = @way and state = 'waiting'

-- name: accepted
select id, user_id, credential_id, sender_local, sender_domain, size, recipients, header_id, envid, sane_time(accepted_at), client_addr,
	client_hello, listener, tls, rule, usage, node, sane_time(voided_at), coalesce(tags, '{}'), metadata
from message where id = @id

-- name: events
select n, at, started_at, result, local, domain, reply_code, reply_enhanced, reply_text, remote_mta, remote_addr, tls, upstream,
	coalesce(sent_as, ''), node, coalesce(scope, ''), epoch, outcome_unknown, possible_duplicate, dsn_passed, fenced, left_ways
from history where message_id = @id order by at, n

-- part: last_attempt
-- The one whose reply says how a notice, t, ended: a server's or, if there was none, the queue's own.
left join lateral (select a.local, a.domain, a.reply_code, a.reply_enhanced, a.reply_text from history a
	where a.message_id = t.message_id and not a.fenced order by a.upstream || a.remote_mta <> '' desc, a.reply_code > 0 desc, a.at desc limit 1) last on true

-- name: notices
-- Reads the notice that a message is, and those about it, each with its recipient and the last
-- reply to it.
select t.message_id, t.about, t.kind, coalesce(t.lost, ''), t.lost_at, coalesce(last.local, ''), coalesce(last.domain, ''),
	coalesce(last.reply_code, 0), coalesce(last.reply_enhanced, ''), coalesce(last.reply_text, '')
from notice t
@last_attempt
where t.message_id = @id or t.about = @id order by t.message_id

-- name: lost
-- The same for the newest losses, told or not.
select t.message_id, t.about, t.kind, t.lost, t.lost_at, coalesce(last.local, ''), coalesce(last.domain, ''),
	coalesce(last.reply_code, 0), coalesce(last.reply_enhanced, ''), coalesce(last.reply_text, '')
from (select message_id, about, kind, lost, lost_at from notice where lost is not null order by lost_at desc, message_id limit @rows) t
@last_attempt
order by t.lost_at desc, t.message_id

-- name: find
-- Finds messages by the Message-ID field, or by the spellings of an address of the sender or of a
-- recipient, the newest first. Each spelling is a query of its own, for which an index has the
-- newest first.
select id from (
	(select id from message where header_id = @header_id and @header_id <> '' order by id desc limit @rows)
	union
	select found.id from (select lower(f) as address from unnest(@address::text[]) f) x cross join lateral (
		(select id from message where lower(sender_local || '@' || sender_domain) = x.address order by id desc limit @rows)
		union
		(select message_id from history where lower(local || '@' || domain) = x.address order by message_id desc limit @rows)
		union
		(select message_id from recipient where lower(local || '@' || domain) = x.address order by message_id desc limit @rows)) found) found
order by id desc limit @rows

-- name: summaries
-- Keeps the order of the ids.
select m.id, m.user_id, m.sender_local, m.sender_domain, coalesce(one.local, ''), coalesce(one.domain, ''), m.recipients, sane_time(m.accepted_at),
	m.voided_at is not null, past.delivered, past.failed, past.cancelled, live.waiting, live.sending, live.held
from unnest(@ids::uuid[]) with ordinality w(id, nth) join message m on m.id = w.id
left join lateral (select local, domain from (
		(select n, local, domain from recipient where message_id = m.id order by n limit 1) union all
		(select n, local, domain from history where message_id = m.id and local <> '' order by n limit 1)) x order by n limit 1) one on true
cross join lateral (select count(*) filter (where st = 'waiting') as waiting, count(*) filter (where st = 'sending') as sending,
		count(*) filter (where st = 'held') as held
	from (select @row_state as st
		from recipient r where r.message_id = m.id) r) live
cross join lateral (select count(distinct n) filter (where result in ('delivered', 'resolve')) as delivered,
		count(distinct n) filter (where result in ('failed', 'expired')) as failed, count(distinct n) filter (where result = 'cancel') as cancelled
	from history where message_id = m.id and not fenced) past
order by w.nth

-- name: user_states
-- Counts a user's live recipients by their state.
select @row_state, count(*)
from recipient r where r.user_id = @user_id group by 1
