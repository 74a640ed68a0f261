-- The mail of users, and the signs that are looked for (anomaly.go).

-- name: note
-- Adds to the hour's counts and returns the users it counted for. Two nodes that note the same new
-- recipient concurrently may both count it. Further mail to a recipient is noted once a month.
with sent as materialized (select u.user_id, substr(sha256(convert_to(lower(u.recipient), 'UTF8')), 1, 16) as recipient, u.new_net
	from unnest(@user_id::bigint[], @recipient::text[], @new_network::boolean[]) u(user_id, recipient, new_net)),
news as (insert into correspondent (user_id, recipient) select distinct user_id, recipient from sent order by user_id, recipient
	on conflict do nothing returning user_id),
again as materialized (select c.user_id, c.recipient from (select distinct user_id, recipient from sent) s
	join correspondent c on c.user_id = s.user_id and c.recipient = s.recipient
	where c.seen_on < current_date - 30 for update of c skip locked),
seen as (update correspondent c set seen_on = current_date from again a where c.user_id = a.user_id and c.recipient = a.recipient),
ends as materialized (select m.user_id, e.rejected from unnest(@message_id::uuid[], @rejected::boolean[]) e(id, rejected) join message m on m.id = e.id where m.user_id > 0),
sums as (select user_id, sum(recipients) as recipients, sum(first_time) as first_time, sum(new_network) as new_network,
		sum(delivered) as delivered, sum(rejected) as rejected
	from (select user_id, 1 as recipients, 0 as first_time, new_net::int as new_network, 0 as delivered, 0 as rejected from sent
		union all select user_id, 0, 1, 0, 0, 0 from news
		union all select user_id, 0, 0, 0, (not rejected)::int, rejected::int from ends) x
	group by user_id)
insert into activity as a (user_id, hour, recipients, first_time, new_network, delivered, rejected)
select user_id, date_trunc('hour', now()), recipients, first_time, new_network, delivered, rejected from sums order by user_id
on conflict (user_id, hour) do update set recipients = a.recipients + excluded.recipients, first_time = a.first_time + excluded.first_time,
	new_network = a.new_network + excluded.new_network, delivered = a.delivered + excluded.delivered, rejected = a.rejected + excluded.rejected
returning user_id

-- name: judge
-- Sums up the users who are not on hold.
select a.user_id, sum(recipients) filter (where recent), coalesce(sum(first_time) filter (where recent), 0),
	coalesce(sum(new_network) filter (where recent), 0), coalesce(sum(delivered) filter (where recent), 0),
	coalesce(sum(rejected) filter (where recent), 0), coalesce(sum(recipients) filter (where not recent), 0)::float8 / (14 * 24)
from (select *, hour >= date_trunc('hour', now()) - interval '1 hour' as recent from activity
	where user_id = any(@user_id::bigint[]) and hour > now() - interval '14 days') a
where not exists (select from hold h where h.user_id = a.user_id and h.credential_id = 0)
group by a.user_id having count(*) filter (where recent) > 0

-- name: set_signs
update anomaly set min_recipients = @min_recipients, first_time_share = nullif(@first_time_share::float8, 0), rejected_share = nullif(@rejected_share::float8, 0), new_network_factor = nullif(@new_network_factor::float8, 0)

-- name: seed_correspondents
-- Learns the users' correspondents from the history, so that turning the sign on does not make
-- everybody a stranger.
insert into correspondent (user_id, recipient)
select distinct m.user_id, substr(sha256(convert_to(lower(a.local || '@' || a.domain), 'UTF8')), 1, 16)
from history a join message m on m.id = a.message_id where m.user_id > 0
on conflict do nothing
