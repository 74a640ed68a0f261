-- A node's epoch (epoch.go).

-- name: take_epoch
-- Starts an epoch and supersedes the older ones of the same name. They are not dead by that: a
-- name proves nothing about who stopped, so their rows come back when their lease has run out,
-- which it will, since they beat no more.
with older as (
	update node set superseded_at = clock_timestamp()
	where name = @name and superseded_at is null and reaped_at is null)
insert into node (name, expires_at, strict_gate) values (@name, clock_timestamp() + @lease::interval, @strict) returning epoch

-- name: rival
-- Finds a later living process of the same name. A lease that ends in an hour does not count:
-- no process has written it.
select exists (select from node where name = @name and epoch > @epoch
	and superseded_at is null and reaped_at is null and expires_at > clock_timestamp() and expires_at < clock_timestamp() + interval '1 hour')

-- name: heartbeat
update node set beat_at = clock_timestamp(), expires_at = clock_timestamp() + @lease::interval
where epoch = @epoch and superseded_at is null and reaped_at is null

-- name: end_epoch
-- The death of an epoch by its own hand.
update node set reaped_at = clock_timestamp() where epoch = @epoch and reaped_at is null

-- name: gate
-- Marks rows as "the dot may have been sent", and to which way, and says how many of each message it
-- found ours.
with o as materialized (select * from unnest(@message_id::uuid[], @n::int[], @epoch::bigint[], @way::text[]) as o(message_id, n, epoch, way)),
marked as (
	update recipient r set dot_possible = true, stays_with = coalesce(nullif(o.way, ''), r.stays_with) from o
	where r.message_id = o.message_id and r.n = o.n and r.owner is not distinct from o.epoch and r.state = 'waiting'
	returning r.message_id, o.epoch)
select m.message_id, m.epoch, count(*), durably()
from marked m group by 1, 2
