-- name: write
-- One event for each user and address that was refused.
insert into event (kind, object, user_id, detail)
select 'refused', address, user_id, jsonb_build_object('count', count, 'reply', reply, 'since', since)
from unnest(@user_id::bigint[], @address::text[], @count::bigint[], @reply::text[], @since::timestamptz[]) u(user_id, address, count, reply, since)
