-- Parts that statements about recipients, r, share (filter.go).

-- part: row_state
-- The state of a recipient, as people see it.
case when r.held_at is not null then 'held' when r.state <> 'waiting' then r.state when r.owner is not null then 'sending' else 'waiting' end

-- part: chosen
-- The filter of list, count, change and cancel. It repeats the states in the form of the partial
-- indexes of waiting and of held rows, and the message is read only if the filter asks about it.
(@ids::uuid[] is null or r.message_id = any(@ids))
	and (@state = '' or @row_state = @state)
	and (not @in_doubt or r.doubt is not null and r.state = 'waiting')
	and (@state <> 'held' or r.held_at is not null) and (@state <> 'waiting' or r.held_at is null and r.owner is null and r.state = 'waiting')
	and (@user_id = 0 or r.user_id = @user_id)
	and (@credential_id = 0 or (select o.credential_id from message o where o.id = r.message_id) = @credential_id)
	and (@sender::text[] is null or (select lower(o.sender_local || '@' || o.sender_domain) from message o where o.id = r.message_id) = any(array(select lower(f) from unnest(@sender) f)))
	and (@recipient::text[] is null or lower(r.local || '@' || r.domain) = any(array(select lower(f) from unnest(@recipient) f)))
	and (@domain = '' or r.domain_key = @domain) and (@upstream = '' or coalesce(r.stays_with, r.last_upstream) = @upstream) and sane_time(r.accepted_at) <= now() - @older_than::interval
	and (@reply = '' or starts_with(concat_ws(' ', nullif(r.reply_code, 0), nullif(r.reply_enhanced, ''), r.reply_text), @reply))
	and (@waits_for::text[] is null or split_part(r.waits_for, ' ', 1) = any(@waits_for))

-- The largest destinations (filter.go).

-- name: shape
-- First which they are, from what is narrow, then what is in them.
with top as materialized (select domain_key, count(*) as n from recipient group by domain_key order by count(*) desc, domain_key limit @rows)
select domain_key, count(*), count(*) filter (where held_at is not null),
	array[count(*) filter (where step = 0), count(*) filter (where step = 1), count(*) filter (where step = 2),
		count(*) filter (where step = 3), count(*) filter (where step = 4), count(*) filter (where step = 5)],
	coalesce(sum(size), 0)::bigint, extract(epoch from max(age))::bigint, coalesce((max(reply collate "C"))[2], '')
from (select r.domain_key, r.held_at, now() - sane_time(r.accepted_at) as age, m.size,
		width_bucket(now() - sane_time(r.accepted_at), @ages::interval[]) as step,
		case when r.reply_code > 0 then array[coalesce(to_char(r.last_attempt_at at time zone 'utc', 'YYYYMMDDHH24MISSUS'), ''),
			concat_ws(' ', nullif(r.reply_code, 0), nullif(r.reply_enhanced, ''), r.reply_text)] end as reply
	from recipient r left join message m on m.id = r.message_id where r.domain_key in (select top.domain_key from top)) x
group by domain_key order by count(*) desc, domain_key limit @rows
