-- The statements of a claim (claim.go). docs/decisions/queue-claim.md has the figures.

-- name: look
-- Reads what has fallen due since a moment, and when the next row falls due if that is all.
-- (Else it is not asked: when a million rows were made due by hand, their old places in the
-- index are passed until vacuum has been there.)
with seen as materialized (
	select domain_key, next_attempt_at from recipient
	where owner is null and held_at is null and state = 'waiting' and (next_attempt_at, domain_key) > (@cursor, @after) and next_attempt_at <= now()
	order by next_attempt_at, domain_key limit @rows),
last as (select * from seen order by next_attempt_at desc, domain_key desc limit 1)
select coalesce(array_agg(distinct domain_key), '{}'), (select next_attempt_at from last), (select domain_key from last), count(*), now(),
	case when count(*) < @rows then (select extract(epoch from min(next_attempt_at) - now())::float8 from recipient
		where owner is null and held_at is null and state = 'waiting' and next_attempt_at > now() and next_attempt_at < now() + interval '1 year') end
from seen

-- name: in_order
-- Gives the turns that have come to those of a line who were accepted first: they change places
-- with those whose turns they were. The line is all that waits for one of @ways.
with due as materialized (
	select message_id, n, next_attempt_at from recipient
	where waits_for is not null and waits_for = any(@ways::text[]) and owner is null and held_at is null and state = 'waiting' and next_attempt_at <= now()
	order by next_attempt_at limit @rows
	for update skip locked),
first as materialized (
	select f.message_id, f.n, f.next_attempt_at from unnest(@ways::text[]) w(way) cross join lateral (
		select message_id, n, next_attempt_at from recipient
		where waits_for is not null and waits_for = w.way and owner is null and held_at is null and state = 'waiting'
		order by message_id limit (select count(*) from due)
		for update skip locked) f
	order by f.message_id limit (select count(*) from due)),
gives as (select *, row_number() over (order by message_id desc, n desc) as nth from due where (message_id, n) not in (select message_id, n from first)),
gets as (select *, row_number() over (order by message_id desc, n desc) as nth from first where (message_id, n) not in (select message_id, n from due))
update recipient r set next_attempt_at = place.at
from (select gets.message_id, gets.n, gives.next_attempt_at as at from gives join gets using (nth)
	union all select gives.message_id, gives.n, gets.next_attempt_at from gives join gets using (nth)) place
where r.message_id = place.message_id and r.n = place.n

-- name: claim
-- Takes rows of @domains, at most @per_destination of each and of about @messages messages, not
-- of @busy_users, then at most @siblings of the same messages that are due and not of @busy.
--
-- Statistics may say that nothing is due when a million rows are: they fell due since. So
-- nothing is said in a way that lets the index of what is due be read for one domain (the row
-- comparison), or an index of what waits for rows whose key is known (coalesce).
--
with pick as materialized (
	select p.message_id, p.n, p.domain_key from unnest(@domains::text[]) d(domain_key) cross join lateral (
		select r.message_id, r.n, r.domain_key from recipient r
		where r.domain_key = d.domain_key and (r.domain_key, r.next_attempt_at) <= (d.domain_key, now())
			and r.owner is null and r.held_at is null and r.state = 'waiting' and r.user_id <> all(@busy_users::bigint[])
		order by r.next_attempt_at, r.message_id limit @per_destination
		for update skip locked) p
	limit @messages),
sibling as materialized (
	select r.message_id, r.n, r.domain_key from (select distinct message_id from pick) m join recipient r on r.message_id = m.message_id
	where coalesce(r.owner, 0) = 0 and r.held_at is null and r.state = 'waiting' and r.next_attempt_at <= now() and r.domain_key <> all(@busy::text[])
	limit @siblings
	for update of r skip locked),
ranked as (
	select message_id, n, row_number() over (partition by domain_key order by message_id, n) as nth
	from (select message_id, n, domain_key from pick union select message_id, n, domain_key from sibling) u)
update recipient r set owner = @epoch, dot_possible = not @strict
from ranked
where r.message_id = ranked.message_id and r.n = ranked.n and ranked.nth <= @per_destination and coalesce(r.owner, 0) = 0
returning r.message_id, r.n, r.domain_key, r.local, r.domain, r.notify, r.orcpt_type, r.orcpt, r.attempts, r.possible_duplicate,
	r.delay_noticed, case when r.expires_at = sane_time(r.expires_at) then extract(epoch from r.expires_at - now())::float8 end, r.reply_code,
	r.mid_text, coalesce(r.stays_with, ''), coalesce(r.waits_for, ''), r.tell & 8 <> 0

-- name: first_due
-- Names the row that a claim of one domain would take first. Like a claim it passes over rows
-- that others have locked: they are not what failed.
select r.message_id, r.n from recipient r
where r.domain_key = @domain and (r.domain_key, r.next_attempt_at) <= (@domain, now())
	and r.owner is null and r.held_at is null and r.state = 'waiting' and r.user_id <> all(@busy_users::bigint[])
order by r.next_attempt_at, r.message_id limit 1
for update skip locked
