-- The statements of a group of outcomes (settle.go). Each array has an element for each attempt,
-- or for each recipient; those of an attempt are from its @first to its @last. So what an attempt
-- has to say is sent once for all its recipients.
-- An outcome that is fenced off changes no row, and is in the history.

-- name: delivered
-- Ends rows that were delivered: the row goes, or stays to be told of when its sender asked
-- for that and the next hop does not see to it. While others of the message are under way,
-- what is to be told is gathered for a while.
--
-- @again leaves out what an earlier try has recorded: those rows may be claimed again by
-- now, by the same epoch. A fenced outcome that is written a second time finds its history there.
-- ("not in" is hashed; a join there would be a loop over all pairs. The limit makes the planner
-- expect few recipients, for whose rows it asks the key.)
with o as materialized (
	select a.*, r.n, a.first + r.nth - 1 as i
	from unnest(@message_id::uuid[], @first::int[], @last::int[], @epoch::bigint[], @at::timestamptz[], @started_at::timestamptz[],
			@code::int[], @enhanced::text[], @text::text[], @mta::text[], @addr::text[], @tls::text[], @upstream::text[], @sent_as::text[],
			@outcome_unknown::boolean[], @dsn_passed::boolean[], @left_ways::text[])
		as a(message_id, first, last, epoch, at, started_at, code, enhanced, text, mta, addr, tls, upstream, sent_as, outcome_unknown, dsn_passed, left_ways)
		cross join lateral (select * from unnest((@n::int[])[a.first:a.last]) with ordinality limit a.last - a.first + 1) r(n, nth)
	where not @again or (select h.n from history h where h.message_id = a.message_id and h.n = r.n and h.at = a.at and h.epoch = a.epoch) is null),
gone as (
	delete from recipient r using o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
		and (r.tell & 4 = 0 or o.dsn_passed)
	returning o.*, r.local, r.domain, r.possible_duplicate),
kept as (
	update recipient r set state = 'delivered', owner = null, dot_possible = false, waits_for = null, attempts = attempts + 1,
		notice_at = now() + case when exists (select from recipient s where s.message_id = r.message_id and s.n <> r.n and s.state = 'waiting')
			then @gather::interval else '0' end,
		last_attempt_at = o.at, reply_code = o.code, reply_enhanced = o.enhanced, reply_text = o.text, remote_mta = o.mta
	from o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
		and r.tell & 4 <> 0 and not o.dsn_passed
	returning o.*, r.local, r.domain, r.possible_duplicate),
k as not materialized (select * from gone union all select * from kept),
h as (
	insert into history (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, sent_as, node, outcome_unknown, possible_duplicate, dsn_passed, fenced, left_ways)
	select message_id, n, at, epoch, 'delivered', started_at, local, domain, code, enhanced, text,
		mta, addr, tls, upstream, nullif(sent_as, ''), @node, outcome_unknown, possible_duplicate, dsn_passed, false, nullif(left_ways, '')::jsonb
	from k),
f as (
	insert into history (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, sent_as, node, outcome_unknown, possible_duplicate, dsn_passed, fenced, left_ways)
	select message_id, n, at, epoch, 'delivered', started_at, (@local::text[])[i], (@domain::text[])[i], code, enhanced, text,
		mta, addr, tls, upstream, nullif(sent_as, ''), @node, outcome_unknown, true, dsn_passed, true, nullif(left_ways, '')::jsonb
	from o where (message_id, n) not in (select k.message_id, k.n from k)
	on conflict do nothing
	returning message_id, n),
b as (
	-- The body goes with the last row of its message.
	delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id)
select f.message_id, f.n, durably()
from f
union all
select null, null, durably()

-- name: undelivered
-- Ends the other attempts: back to waiting, or failed when the server said so or the lifetime
-- is over, or the policy of a row in doubt is notice; a row whose failure nobody wants to hear of is
-- deleted immediately. When a notice failed an admin is told (TellLost). An outcome that was not an
-- attempt leaves its reason in the row, for the queue's listing and a delay notice to show, and
-- nothing in the history. @again is as in delivered.
with o as materialized (
	select a.*, r.n, a.first + r.nth - 1 as i
	from unnest(@message_id::uuid[], @first::int[], @last::int[], @epoch::bigint[], @at::timestamptz[], @started_at::timestamptz[],
			@code::int[], @enhanced::text[], @text::text[], @mta::text[], @addr::text[], @tls::text[], @upstream::text[], @sent_as::text[],
			@outcome_unknown::boolean[], @dsn_passed::boolean[], @left_ways::text[], @result::text[], @retry_in::interval[], @released::boolean[],
			@waits_for::text[], @ours::boolean[], @scope::text[], @stays_with::text[], @mid_text::boolean[])
		as a(message_id, first, last, epoch, at, started_at, code, enhanced, text, mta, addr, tls, upstream, sent_as, outcome_unknown, dsn_passed,
			left_ways, result, retry_in, released, waits_for, ours, scope, stays_with, mid_text)
		cross join lateral (select * from unnest((@n::int[])[a.first:a.last]) with ordinality limit a.last - a.first + 1) r(n, nth)
	where not @again or (select h.n from history h where h.message_id = a.message_id and h.n = r.n and h.at = a.at and h.epoch = a.epoch) is null),
mine as materialized (
	select o.*, r.local, r.domain, r.possible_duplicate, r.tell, d.doubt,
		not o.released and (o.result <> 'deferred' or d.doubt is not distinct from 'notice'
			or d.doubt is distinct from 'hold' and r.expires_at <= now()) as fails,
		not o.released and o.result = 'deferred' and coalesce(d.doubt, 'retry') = 'retry' and r.expires_at <= now() as late
	from o join recipient r on r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
		-- A complete refusal ends the doubt; the end of the lifetime does not.
		cross join lateral (select case when o.outcome_unknown then doubt_policy(r.user_id, o.stays_with, r.tell)
			when o.result <> 'failed' then r.doubt end as doubt) d
	for update of r),
-- The messages of which recipients go on: more may fail soon, to be told by one notice.
goes_on as materialized (
	select f.message_id from (select message_id, count(*) as ends from mine where fails group by message_id) f
	where f.ends < (select count(*) from recipient r where r.message_id = f.message_id and r.state = 'waiting')),
gone as (
	delete from recipient r using mine m
	where r.message_id = m.message_id and r.n = m.n and m.fails and m.tell & 1 = 0
	returning r.message_id, r.n),
lost as (
	update notice t set lost = case when m.late or m.result = 'expired' then 'expired' else 'failed' end, lost_at = now()
	from mine m
	where t.message_id = m.message_id and m.fails and m.tell & 1 = 0 and t.lost is null),
released as (
	update recipient r set owner = null, dot_possible = false, next_attempt_at = least(now() + m.retry_in, r.expires_at),
		waits_for = case when m.code > 0 then nullif(m.waits_for, '') else r.waits_for end, stays_with = nullif(m.stays_with, ''),
		scope = case when m.code > 0 then nullif(m.scope, '') else r.scope end,
		last_upstream = case when m.upstream <> '' then m.upstream else r.last_upstream end,
		notice_at = case when m.code = 0 or r.delay_noticed or r.tell & 2 = 0 then r.notice_at
			else least(coalesce(r.notice_at, r.accepted_at + @delay_notice::interval),
				case when m.scope in ('sender', 'account') then r.accepted_at + @fault_notice::interval end) end,
		held_at = held_since(r.message_id, r.held_at),
		reply_code = case when m.code > 0 then m.code else r.reply_code end,
		reply_enhanced = case when m.code > 0 then m.enhanced else r.reply_enhanced end,
		reply_text = case when m.code > 0 then m.text else r.reply_text end,
		remote_mta = case when m.code = 0 then r.remote_mta when m.ours then '' else m.mta end
	from mine m
	where r.message_id = m.message_id and r.n = m.n and m.released
	returning r.message_id, r.n, r.local, r.domain, r.held_at, r.doubt),
kept as (
	update recipient r set owner = null, dot_possible = false,
		state = case when m.fails then 'failed' else 'waiting' end,
		held_at = case when m.fails then null when m.doubt = 'hold' then now() else held_since(r.message_id, r.held_at) end,
		last_upstream = case m.result when 'expired' then r.last_upstream else m.upstream end, doubt = m.doubt,
		waits_for = case when not m.fails then nullif(m.waits_for, '') end, mid_text = m.mid_text,
		stays_with = case when not m.fails then nullif(m.stays_with, '') end,
		scope = case m.result when 'expired' then r.scope else nullif(m.scope, '') end,
		possible_duplicate = r.possible_duplicate or m.outcome_unknown,
		attempts = r.attempts + case m.result when 'expired' then 0 else 1 end,
		next_attempt_at = least(now() + m.retry_in, r.expires_at),
		notice_at = case when m.fails then now() + case when m.message_id in (select message_id from goes_on) then @gather::interval else '0' end
			when r.delay_noticed or r.tell & 2 = 0 then r.notice_at
			else least(coalesce(r.notice_at, r.accepted_at + @delay_notice::interval),
				case when m.scope in ('sender', 'account') then r.accepted_at + @fault_notice::interval end) end,
		last_attempt_at = case m.result when 'expired' then r.last_attempt_at else m.at end,
		reply_code = case when m.late then 451 else m.code end,
		reply_enhanced = case when m.late then '4.4.7' else m.enhanced end,
		reply_text = case when m.late then 'Delivery time expired, last reply: ' || m.code || ' ' || m.enhanced || ' ' || m.text ||
				case when m.mta <> '' and not m.ours then ' (said by ' || m.mta || ')' else '' end
			when m.result = 'expired' and r.reply_code > 0
				then m.text || ', last reply: ' || r.reply_code || ' ' || r.reply_enhanced || ' ' || r.reply_text ||
				case when r.remote_mta <> '' then ' (said by ' || r.remote_mta || ')' else '' end
			else m.text end,
		remote_mta = case when m.ours then '' when m.result = 'expired' then r.remote_mta else m.mta end
	from mine m
	where r.message_id = m.message_id and r.n = m.n and not m.released and not (m.fails and m.tell & 1 = 0)
	returning r.message_id, r.n, r.local, r.domain, r.held_at, r.doubt),
back as not materialized (select * from released union all select * from kept),
held as (@tell_held),
h as (
	insert into history (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, sent_as, node, outcome_unknown, possible_duplicate, dsn_passed, fenced, scope, left_ways)
	select message_id, n, at, epoch, case when late then 'expired' when fails and result = 'deferred' then 'failed' else result end, started_at, local, domain, code, enhanced, text,
		mta, addr, tls, upstream, nullif(sent_as, ''), @node, outcome_unknown, possible_duplicate, dsn_passed, false, nullif(scope, ''), nullif(left_ways, '')::jsonb
	from mine where not released),
f as (
	insert into history (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, sent_as, node, outcome_unknown, possible_duplicate, dsn_passed, fenced, scope, left_ways)
	select message_id, n, at, epoch, result, started_at, (@local::text[])[i], (@domain::text[])[i], code, enhanced, text,
		mta, addr, tls, upstream, nullif(sent_as, ''), @node, outcome_unknown, outcome_unknown, dsn_passed, true, nullif(scope, ''), nullif(left_ways, '')::jsonb
	from o where not released and (message_id, n) not in (select mine.message_id, mine.n from mine)
	on conflict do nothing
	returning message_id, n),
b as (
	delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id)
select f.message_id, f.n, durably()
from f
union all
select null, null, durably()

-- name: await_outcomes
-- Waits for an earlier try that is still under way, so that what follows, a statement of
-- its own, sees what it has recorded.
select count(*) from (
	select from unnest(@message_id::uuid[], @n::int[]) o(message_id, n)
		join recipient r on r.message_id = o.message_id and r.n = o.n
	for update of r) locked

-- name: flag_fenced
-- Flags the rows that wait, or are owned again, although their fenced outcomes say that they
-- were or may have been delivered. Most rows are flagged by whatever ended their ownership; not
-- those whose claim a failover has lost. Should this not be written, the history still says so.
update recipient r set possible_duplicate = true
from unnest(@message_id::uuid[], @n::int[]) f(message_id, n)
where r.message_id = f.message_id and r.n = f.n and r.state = 'waiting' and not r.possible_duplicate
	and exists (select from history a where a.message_id = f.message_id and a.n = f.n and a.fenced and a.possible_duplicate)
