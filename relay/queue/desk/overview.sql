-- The whole queue in numbers (overview.go).

-- name: shares
-- Reads every live recipient once, and nothing else of them but two times and a state: see
-- docs/metrics.md for what that costs.
select @row_state,
	width_bucket(now() - sane_time(r.accepted_at), @ages::interval[]), count(*), greatest(now() - min(sane_time(r.accepted_at)), interval '0')
from recipient r group by 1, 2

-- name: rest
select coalesce(greatest(now() - (select min(next_attempt_at) from recipient
		where owner is null and held_at is null and state = 'waiting' and next_attempt_at <= now() and next_attempt_at > 'epoch'), interval '0'), interval '0'),
	(select count(*) from node where reaped_at is null and superseded_at is null and expires_at > clock_timestamp()),
	(select count(*) from hold), (select count(*) from recipient where held_at is not null and set_aside is not null),
	(select count(*) from recipient where doubt = 'retry' and state = 'waiting'), (select count(*) from recipient where doubt = 'hold' and state = 'waiting')
