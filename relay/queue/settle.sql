-- The statements of a group of outcomes (settle.go). Each array has an element for each outcome.
-- An outcome that is fenced off changes no row, and is in the history.

-- name: delivered
-- Ends rows that were delivered: the row goes, or stays to be told of when its sender asked
-- for that and the next hop does not see to it. While others of the message are under way,
-- what is to be told is gathered for a while.
--
-- @again leaves out what an earlier try has recorded: those rows may be claimed again by
-- now, by the same epoch. An outcome that is written a second time finds its history there and
-- is not taken for fenced. ("not in" is hashed; a join there would be a loop over all pairs.)
with o as materialized (
	select * from unnest(@message_id::uuid[], @n::int[], @epoch::bigint[], @result::text[], @at::timestamptz[], @started_at::timestamptz[],
			@code::int[], @enhanced::text[], @text::text[], @mta::text[], @addr::text[], @tls::text[], @upstream::text[],
			@outcome_unknown::boolean[], @dsn_passed::boolean[], @retry_in::interval[], @released::boolean[], @local::text[], @domain::text[],
			@waits_for::text[], @ours::boolean[])
		as o(message_id, n, epoch, result, at, started_at, code, enhanced, text, mta, addr, tls, upstream, outcome_unknown, dsn_passed,
			retry_in, released, local, domain, waits_for, ours)
	where not @again or not exists (select from history a where a.message_id = o.message_id and a.n = o.n and a.at = o.at and a.epoch = o.epoch)),
gone as (
	delete from recipient r using o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
		and (r.tell & 4 = 0 or o.dsn_passed)
	returning o.*, r.possible_duplicate as duplicate),
kept as (
	update recipient r set state = 'delivered', owner = null, dot_possible = false, attempts = attempts + 1,
		notice_at = now() + case when exists (select from recipient s where s.message_id = r.message_id and s.n <> r.n and s.state = 'waiting')
			then @gather::interval else '0' end,
		last_attempt_at = o.at, reply_code = o.code, reply_enhanced = o.enhanced, reply_text = o.text, remote_mta = o.mta
	from o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
		and r.tell & 4 <> 0 and not o.dsn_passed
	returning o.*, r.possible_duplicate),
k as (select * from gone union all select * from kept),
h as (
	insert into history (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, node, outcome_unknown, possible_duplicate, dsn_passed, fenced)
	select e.message_id, e.n, e.at, e.epoch, e.result, e.started_at, e.local, e.domain, e.code, e.enhanced, e.text,
		e.mta, e.addr, e.tls, e.upstream, @node, e.outcome_unknown, e.duplicate, e.dsn_passed, e.fenced
	from (select k.*, false as fenced from k
		union all
		select o.*, o.outcome_unknown or o.result = 'delivered', true from o
		where (o.message_id, o.n) not in (select k.message_id, k.n from k)) e
	where not e.released
	on conflict do nothing
	returning message_id, n, fenced),
b as (
	-- The body goes with the last row of its message.
	delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id)
select h.message_id, h.n,
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)
from h where h.fenced
union all
select null, null,
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)

-- name: undelivered
-- Ends the other attempts: back to waiting, or failed when the server said so or the lifetime
-- is over; a row whose failure nobody wants to hear of is deleted immediately. When a notice
-- failed an admin is told (TellLost). An outcome that was not an attempt leaves its reason in
-- the row, for the queue's listing and a delay notice to show, and nothing in the history.
-- @again is as in delivered.
with o as materialized (
	select * from unnest(@message_id::uuid[], @n::int[], @epoch::bigint[], @result::text[], @at::timestamptz[], @started_at::timestamptz[],
			@code::int[], @enhanced::text[], @text::text[], @mta::text[], @addr::text[], @tls::text[], @upstream::text[],
			@outcome_unknown::boolean[], @dsn_passed::boolean[], @retry_in::interval[], @released::boolean[], @local::text[], @domain::text[],
			@waits_for::text[], @ours::boolean[], @scope::text[])
		as o(message_id, n, epoch, result, at, started_at, code, enhanced, text, mta, addr, tls, upstream, outcome_unknown, dsn_passed,
			retry_in, released, local, domain, waits_for, ours, scope)
	where not @again or not exists (select from history a where a.message_id = o.message_id and a.n = o.n and a.at = o.at and a.epoch = o.epoch)),
mine as materialized (
	select o.*, r.possible_duplicate as duplicate, r.tell,
		not o.released and (o.result <> 'deferred' or r.expires_at <= now()) as fails,
		not o.released and o.result = 'deferred' and r.expires_at <= now() as late
	from o join recipient r on r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
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
back as (
	update recipient r set owner = null, dot_possible = false, next_attempt_at = least(now() + m.retry_in, r.expires_at),
		waits_for = nullif(m.waits_for, ''),
		notice_at = case when m.code = 0 or r.delay_noticed or r.tell & 2 = 0 then r.notice_at
			else coalesce(r.notice_at, r.accepted_at + @delay_notice::interval) end,
		held_at = held_since(r.message_id, r.held_at),
		reply_code = case when m.code > 0 then m.code else r.reply_code end,
		reply_enhanced = case when m.code > 0 then m.enhanced else r.reply_enhanced end,
		reply_text = case when m.code > 0 then m.text else r.reply_text end
	from mine m
	where r.message_id = m.message_id and r.n = m.n and m.released),
kept as (
	update recipient r set owner = null, dot_possible = false,
		state = case when m.fails then 'failed' else 'waiting' end,
		held_at = case when not m.fails then held_since(r.message_id, r.held_at) end, last_upstream = m.upstream,
		waits_for = case when not m.fails then nullif(m.waits_for, '') end,
		possible_duplicate = r.possible_duplicate or m.outcome_unknown,
		attempts = r.attempts + case m.result when 'expired' then 0 else 1 end,
		next_attempt_at = least(now() + m.retry_in, r.expires_at),
		notice_at = case when m.fails then now() + case when m.message_id in (select message_id from goes_on) then @gather::interval else '0' end
			when r.delay_noticed or r.tell & 2 = 0 then r.notice_at
			else coalesce(r.notice_at, r.accepted_at + @delay_notice::interval) end,
		last_attempt_at = case m.result when 'expired' then r.last_attempt_at else m.at end,
		reply_code = case when m.late then 451 else m.code end,
		reply_enhanced = case when m.late then '4.4.7' else m.enhanced end,
		reply_text = case when m.late then 'Delivery time expired, last reply: ' || m.code || ' ' || m.enhanced || ' ' || m.text ||
				case when m.mta <> '' and not m.ours then ' (said by ' || m.mta || ')' else '' end
			when m.result = 'expired' and r.reply_code > 0
				then m.text || ', last reply: ' || r.reply_code || ' ' || r.reply_enhanced || ' ' || r.reply_text ||
				case when r.remote_mta <> '' then ' (said by ' || r.remote_mta || ')' else '' end
			else m.text end,
		remote_mta = case when m.ours or m.late or m.result = 'expired' then '' else m.mta end
	from mine m
	where r.message_id = m.message_id and r.n = m.n and not m.released and not (m.fails and m.tell & 1 = 0)),
k as (
	select m.message_id, m.n, m.epoch, case when m.late then 'expired' else m.result end as result, m.at, m.started_at, m.code, m.enhanced,
		m.text, m.mta, m.addr, m.tls, m.upstream, m.outcome_unknown, m.dsn_passed, m.retry_in, m.released, m.local, m.domain, m.waits_for,
		m.ours, m.scope, m.duplicate
	from mine m),
h as (
	insert into history (message_id, n, at, epoch, result, started_at, local, domain, reply_code, reply_enhanced, reply_text,
		remote_mta, remote_addr, tls, upstream, node, outcome_unknown, possible_duplicate, dsn_passed, fenced, scope)
	select e.message_id, e.n, e.at, e.epoch, e.result, e.started_at, e.local, e.domain, e.code, e.enhanced, e.text,
		e.mta, e.addr, e.tls, e.upstream, @node, e.outcome_unknown, e.duplicate, e.dsn_passed, e.fenced, nullif(e.scope, '')
	from (select k.*, false as fenced from k
		union all
		select o.*, o.outcome_unknown or o.result = 'delivered', true from o
		where (o.message_id, o.n) not in (select k.message_id, k.n from k)) e
	where not e.released
	on conflict do nothing
	returning message_id, n, fenced),
b as (
	delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id)
select h.message_id, h.n,
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)
from h where h.fenced
union all
select null, null,
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)

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
