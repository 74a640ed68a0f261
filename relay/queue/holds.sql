-- Holds of users (holds.go).

-- part: tell_held
-- The history of rows, b, that a hold holds from now on. Those in doubt wait for a person anyway.
insert into history (message_id, n, at, epoch, result, local, domain, reply_text)
	select b.message_id, b.n, clock_timestamp(), 0, 'hold', b.local, b.domain, held_because(b.message_id)
	from back b where exists (select from hold) and b.held_at is not null and b.doubt is distinct from 'hold'
	on conflict do nothing

-- name: catch_up
-- Holds what came back to waiting while a hold was made: neither of the two transactions saw the
-- other. Recipients that an admin has released since stay released.
with back as (update recipient r set held_at = now()
from hold h
where h.user_id = any(@user_id::bigint[]) and r.user_id = h.user_id and r.owner is null and r.held_at is null and r.state = 'waiting'
	and exists (select from message m where m.id = r.message_id and m.user_id = h.user_id and h.credential_id in (0, m.credential_id) offset 0)
	and not exists (select from history a where a.message_id = r.message_id and a.n = r.n and a.result = 'release' and a.at > h.made_at)
returning r.message_id, r.n, r.local, r.domain, r.held_at, r.doubt),
told as (@tell_held)
select count(*) from back
