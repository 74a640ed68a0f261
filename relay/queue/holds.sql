-- Holds of users (holds.go).

-- name: catch_up
-- Holds what came back to waiting while a hold was made: neither of the two transactions saw the
-- other. Recipients that an admin has released since stay released.
update recipient r set held_at = now()
from hold h
where h.user_id = any(@user_id::bigint[]) and r.user_id = h.user_id and r.owner is null and r.held_at is null and r.state = 'waiting'
	and exists (select from message m where m.id = r.message_id and m.user_id = h.user_id and h.credential_id in (0, m.credential_id) offset 0)
	and not exists (select from history a where a.message_id = r.message_id and a.n = r.n and a.result = 'release' and a.at > h.made_at)
