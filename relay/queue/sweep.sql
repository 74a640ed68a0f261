-- These put right what a crash or a lost answer left behind (sweep.go).

-- name: living
-- Lists the living epochs, and says whose lease ended long enough ago, and whose ends later than
-- any that a heartbeat takes now: its row is bad, or the clock was set back.
select epoch, name, beat_at::text, expires_at + @reap_after::interval < clock_timestamp(), expires_at > clock_timestamp() + @never::interval
from node where reaped_at is null

-- part: lost_doubt
-- The policy of a row, r, whose owner is lost: null unless the dot and its way are known.
case when r.dot_possible and r.state = 'waiting' and r.stays_with is not null then doubt_policy(r.user_id, r.stays_with, r.tell) end

-- part: lost_result
case l.doubt when 'notice' then 'failed' else 'unknown' end

-- part: take_back
-- Under the local gate a row is tried again immediately whatever is known of its dot: rule 3 of
-- docs/queue-states.md. Under the strict one its reply is as good as lost.
update recipient r set owner = null, dot_possible = false, waits_for = null, possible_duplicate = r.possible_duplicate or l.sent,
		doubt = coalesce(l.doubt, r.doubt), state = case l.doubt when 'notice' then 'failed' else r.state end,
		held_at = case l.doubt when 'hold' then now() when 'notice' then null else held_since(r.message_id, r.held_at) end,
		notice_at = case l.doubt when 'notice' then now() else r.notice_at end,
		reply_code = case when l.doubt is null then r.reply_code else 451 end,
		reply_enhanced = case when l.doubt is null then r.reply_enhanced else '4.4.2' end,
		reply_text = case when l.doubt is null then r.reply_text else 'this node stopped at the end of the message; it may have been delivered' end,
		remote_mta = case when l.doubt is null then r.remote_mta else '' end,
		next_attempt_at = case when l.state <> 'waiting' then r.next_attempt_at
			when l.doubt = 'retry' and (select strict_gate from node where epoch = l.owner) then least(greatest(r.next_attempt_at, now() + @doubt_wait::interval), r.expires_at)
			else greatest(r.next_attempt_at, now()) end
	from lost l where r.message_id = l.message_id and r.n = l.n
	returning r.message_id, r.n, r.local, r.domain, r.held_at, r.doubt

-- name: reap
-- Takes back rows of dead epochs, or with @one a single row of one. Those that their owner may
-- have sent are flagged, and their history says so.
with lost as materialized (
	select r.message_id, r.n, r.owner, r.dot_possible and r.state = 'waiting' as sent, r.state, r.local, r.domain, @lost_doubt as doubt
	from recipient r
	where not @one and r.owner = any(array(select epoch from node where reaped_at is not null))
		or @one and r.message_id = @message_id and r.n = @n and r.owner = @epoch
	limit @rows for update skip locked),
back as (@take_back),
held as (@tell_held),
h as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text, outcome_unknown, possible_duplicate)
	select l.message_id, l.n, now(), l.owner, @lost_result, l.local, l.domain, coalesce(node.name, ''),
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
	select r.message_id, r.n, r.owner, r.dot_possible and r.state = 'waiting' as sent, r.state, r.local, r.domain, @lost_doubt as doubt
	from recipient r
	where @all and r.owner = @epoch or not @all and r.message_id = any(@message_id::uuid[]) and r.owner is not distinct from @epoch
	limit @rows for update),
back as (@take_back),
held as (@tell_held),
h as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text, outcome_unknown, possible_duplicate)
	select l.message_id, l.n, now(), l.owner, @lost_result, l.local, l.domain, coalesce(node.name, ''), 'The node had lost track of this recipient, it may have delivered', true, true
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
