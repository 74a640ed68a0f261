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
