-- Ways that are back (recovered.go).

-- name: recovered
-- Makes a part of the rows due that wait for one of the ways, first those that were accepted first.
with due as materialized (
	select message_id, n from recipient
	where waits_for is not null and waits_for = any(@ways::text[]) and owner is null and held_at is null and state = 'waiting'
	order by waits_for, message_id limit @rows
	for update skip locked)
update recipient r set next_attempt_at = now(), waits_for = null
from due where r.message_id = due.message_id and r.n = due.n

-- name: one_due
-- Makes a row due that waits for one of the ways: the one that would wait the longest.
with one as materialized (
	select w.message_id, w.n from unnest(@ways::text[]) u(way) cross join lateral (
		select message_id, n, next_attempt_at from recipient
		where waits_for is not null and waits_for = u.way and owner is null and held_at is null and state = 'waiting'
		order by next_attempt_at desc limit 1
		for update skip locked) w
	order by w.next_attempt_at desc limit 1)
update recipient r set next_attempt_at = now()
from one where r.message_id = one.message_id and r.n = one.n

