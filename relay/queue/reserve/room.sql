-- The reserve, and whether the disk is full (room.go). The statements that update the one row of
-- table room do so in place, which needs no space.

-- name: room
-- Says whether the disk is full, how large the reserve is, and which server says so.
select full_at is not null, pg_relation_size('reserve'), pg_postmaster_start_time() from room

-- name: full
-- Notes that the disk is full.
update room set full_at = coalesce(full_at, clock_timestamp()), tried_at = clock_timestamp(), trying = false

-- name: try
-- Begins a try for room unless one was begun just now. An earlier try that has not ended was the
-- end of its server, or of its node. One in the future was made before the clock was set back.
update room set tried_at = clock_timestamp(), trying = true,
	full_at = case when trying then coalesce(full_at, clock_timestamp()) else full_at end
where tried_at not between clock_timestamp() - @again::interval and clock_timestamp() + interval '1 minute' returning full_at is not null

-- name: has_room
-- Ends a try that has found room.
update room set full_at = null, trying = false

-- name: leave
-- Ends a try that has found nothing out.
update room set trying = false

-- name: reserved
-- Says how large the reserve is.
select pg_relation_size('reserve')

-- name: give_back
-- Gives all of the reserve back to the file system.
truncate reserve
