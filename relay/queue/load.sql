-- Messages and their bodies (load.go).

-- name: messages
-- Reads envelopes.
select m.id, m.user_id, m.credential_id, m.sender_local, m.sender_domain, m.size, m.body_type, m.utf8, m.eight_bit, m.ret, m.envid, m.header_id,
	case when m.accepted_at = sane_time(m.accepted_at) then m.accepted_at end, m.client_addr, m.client_hello, m.listener, m.tls
from unnest(@id::uuid[]) w(id) join message m on m.id = w.id

-- name: small_bodies
-- Reads whole bodies, their rows in any order.
select b.message_id, b.n, b.chunk from unnest(@id::uuid[]) w(id) join body b on b.message_id = w.id

-- name: stored
-- Says of which bodies the last row is stored: they have been stored whole.
select w.id from unnest(@id::uuid[], @last::int[], @octets::int[]) w(id, last, octets)
where exists (select from stored_body b where b.message_id = w.id and b.n = w.last and octet_length(b.chunk) = w.octets)
