-- Octets of messages that nobody waits for (bodies.go).

-- name: turns
-- Lists the tables.
select turn, writing, clock_timestamp() - changed_at, pg_relation_size(('large_body_' || turn)::regclass) from large_turn order by turn

-- name: first_turn
-- Lets the first table be written to if none is.
insert into large_turn (turn, writing) select n, n = 0 from generate_series(0, 3) n
on conflict (turn) do update set writing = large_turn.turn = 0 where not exists (select from large_turn where writing)

-- name: next_turn
-- Does nothing if another node was faster. (The one that is written to goes first, for the index
-- that allows only one.)
with was as (update large_turn set writing = false, changed_at = clock_timestamp() where turn = @turn and writing returning turn)
update large_turn set writing = true, changed_at = clock_timestamp() where turn = @next and not writing and exists (select from was)

-- name: turn_waits
-- Lists the messages of one table that have recipients, stepping from message to message: each has
-- hundreds of rows.
with recursive w(message_id) as (
	(select message_id from large_body where turn = @turn order by message_id limit 1)
	union all
	select (select b.message_id from large_body b where b.turn = @turn and b.message_id > w.message_id order by b.message_id limit 1)
	from w where w.message_id is not null)
select message_id from w where exists (select from recipient r where r.message_id = w.message_id)

-- name: move_body
-- Moves one message's octets to where mail may wait for days. Two nodes may move the same message,
-- by different plans: its rows are locked in their order first, or each could wait for a row of
-- the other.
with mine as materialized (select n from large_body where turn = @turn and message_id = @message_id order by n for update),
gone as (delete from large_body l using mine where l.turn = @turn and l.message_id = @message_id and l.n = mine.n returning l.message_id, l.n, l.chunk)
insert into body (message_id, n, chunk) select message_id, n, chunk from gone where n >= 0

-- name: orphans
-- Walks over the table body by key, from each message to the next, since a large one that moved
-- here has a thousand rows, and deletes those without a recipient.
with recursive w(message_id, i) as (
	(select message_id, 1 from body where message_id > @after order by message_id limit 1)
	union all
	select (select b.message_id from body b where b.message_id > w.message_id order by b.message_id limit 1), w.i + 1
	from w where w.message_id is not null and w.i < @rows),
gone as (delete from body using w where body.message_id = w.message_id and not exists (select from recipient r where r.message_id = w.message_id))
select count(message_id), max(message_id::text) from w

-- name: clear
-- Truncates a table in which nothing waits.
select clear_large_body(@turn)
