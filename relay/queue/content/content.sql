-- The octets of messages (body.go, copy.go, load.go).

-- name: small
-- Reads whole bodies, their rows in any order.
select b.message_id, b.n, b.chunk from unnest(@id::uuid[]) w(id) join body b on b.message_id = w.id

-- name: stored
-- Says of which bodies the last row is stored: they have been stored whole.
select w.id from unnest(@id::uuid[], @last::int[], @octets::int[]) w(id, last, octets)
where exists (select from stored_body b where b.message_id = w.id and b.n = w.last and octet_length(b.chunk) = w.octets)

-- name: chunks
-- Reads a part of a body.
select chunk from stored_body where message_id = @id and n >= @first and n < @end order by n

-- name: turn
-- Says which of the tables of large bodies is written to, and bounds the time of the transaction:
-- the server itself would wait for ever for a node that stands still.
select coalesce((select turn from large_turn where writing), 0), set_config('statement_timeout', '5min', true)

-- name: no_limit
-- Ends the bound of turn: a commit is never cancelled.
select set_config('statement_timeout', '0', true)
