-- Messages (load.go).

-- name: messages
-- Reads envelopes.
select m.id, m.user_id, m.credential_id, m.sender_local, m.sender_domain, m.size, m.body_type, m.utf8, m.eight_bit, m.ret, m.envid, m.header_id, coalesce(m.tls_need, ''),
	case when m.accepted_at = sane_time(m.accepted_at) then m.accepted_at end, m.client_addr, m.client_hello, m.listener, m.tls, m.body_hash
from unnest(@id::uuid[]) w(id) join message m on m.id = w.id
