-- These put right what a crash or a lost answer left behind (sweep.go).

-- name: living
-- Lists the living epochs, and says whose lease ended long enough ago, and whose ends later than
-- any that a heartbeat takes now: its row is bad, or the clock was set back.
select epoch, name, beat_at::text, expires_at + @reap_after::interval < clock_timestamp(), expires_at > clock_timestamp() + @never::interval
from node where reaped_at is null

-- name: reap
-- Takes back rows of dead epochs, or with @one a single row of one. Those that their owner may
-- have sent are flagged, and their history says so.
with lost as materialized (
	select r.message_id, r.n, r.owner, r.dot_possible and r.state = 'waiting' as sent, r.state, r.local, r.domain
	from recipient r
	where not @one and r.owner = any(array(select epoch from node where reaped_at is not null))
		or @one and r.message_id = @message_id and r.n = @n and r.owner = @epoch
	limit @rows for update skip locked),
back as (update recipient r set owner = null, dot_possible = false, held_at = held_since(r.message_id, r.held_at),
		possible_duplicate = r.possible_duplicate or l.sent,
		next_attempt_at = case when l.state = 'waiting' then greatest(r.next_attempt_at, now()) else r.next_attempt_at end
	from lost l where r.message_id = l.message_id and r.n = l.n),
h as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text, outcome_unknown, possible_duplicate)
	select l.message_id, l.n, now(), l.owner, 'unknown', l.local, l.domain, coalesce(node.name, ''),
		case when l.sent then 'The node that had this recipient is gone, it may have delivered'
			else 'The node that had this recipient is gone before it delivered' end, l.sent, l.sent
	from lost l left join node on node.epoch = l.owner where l.state = 'waiting'
	on conflict do nothing)
select (select count(*) from lost), durably()

-- name: hand_back
-- Takes back rows of an epoch: all at its end or, unless @all, those of messages that it owns
-- while its node does not know of them. Those that may have been sent were sent if the database
-- has forgotten how that ended, as after a failover that lost the last moments.
with lost as materialized (
	select r.message_id, r.n, r.owner, r.dot_possible and r.state = 'waiting' as sent, r.state, r.local, r.domain
	from recipient r
	where @all and r.owner = @epoch or not @all and r.message_id = any(@message_id::uuid[]) and r.owner is not distinct from @epoch
	limit @rows for update),
back as (update recipient r set owner = null, dot_possible = false, held_at = held_since(r.message_id, r.held_at),
		possible_duplicate = r.possible_duplicate or l.sent,
		next_attempt_at = case when l.state = 'waiting' then greatest(r.next_attempt_at, now()) else r.next_attempt_at end
	from lost l where r.message_id = l.message_id and r.n = l.n),
h as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text, outcome_unknown, possible_duplicate)
	select l.message_id, l.n, now(), l.owner, 'unknown', l.local, l.domain, coalesce(node.name, ''), 'The node had lost track of this recipient, it may have delivered', true, true
	from lost l left join node on node.epoch = l.owner where l.sent
	on conflict do nothing)
select (select count(*) from lost), durably()

-- name: dead
-- Names rows of dead epochs.
select message_id, n, owner from recipient where owner = any(array(select epoch from node where reaped_at is not null)) limit @rows

-- name: never_due
-- Makes rows due that no claim would find: their time lies before all calendars or in no year
-- that comes.
update recipient set next_attempt_at = now()
where owner is null and held_at is null and state = 'waiting' and (next_attempt_at < '0001-01-02 00:00+00' or next_attempt_at > now() + interval '1 year')

-- name: never_told
-- The same for notices.
update recipient set notice_at = now()
where owner is null and held_at is null and notice_at is not null and notice_at > now() + interval '1 year'
