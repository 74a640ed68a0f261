-- name: note
-- Writes down what a node has found. A finding that was away for a while begins anew, and so does one of before
-- the clock was set back.
insert into alert_finding as f (node, key, id, status, subject, text, todo)
select @node, u.* from unnest(@key::text[], @id::text[], @status::text[], @subject::text[], @text::text[], @todo::text[]) u(key, id, status, subject, text, todo)
on conflict (node, key) do update set id = excluded.id, status = excluded.status, subject = excluded.subject, text = excluded.text, todo = excluded.todo,
	seen_at = now(), since = case when f.seen_at < now() - @fresh::interval or f.since > now() then now() else f.since end

-- name: forget
delete from alert_finding where seen_at < now() - interval '1 day'

-- name: state
select mailed_at, told, test_at is not null, clock_timestamp() from alert

-- name: current
-- Lists the findings that some node has seen lately, and whether one has seen it twice. The last look
-- tells it best.
with fresh as (select * from alert_finding where seen_at between now() - @fresh::interval and now() + @fresh::interval)
select g.key, l.id, l.status, l.subject, l.text, l.todo, g.since, g.nodes, g.sure
from (select key, min(since) as since, array_agg(node order by node) as nodes, bool_or(seen_at > since) as sure from fresh group by key) g
	join lateral (select * from fresh f where f.key = g.key order by f.seen_at desc, f.node limit 1) l on true
order by l.status, g.since, g.key

-- name: mail
-- Records a mail, unless another node has sent one since.
update alert set mailed_at = clock_timestamp(), told = @told::text[], message_id = @message_id where mailed_at is not distinct from @seen::timestamptz

-- name: shrink
-- Forgets findings that ended.
update alert set told = @told::text[] where mailed_at is not distinct from @seen::timestamptz

-- name: test
-- Records a mail that was asked for.
update alert set test_at = null, test_id = @message_id where test_at is not null

-- name: want_test
update alert set test_at = clock_timestamp(), test_id = null

-- name: tested
select test_id from alert

-- name: give_up
update alert set test_at = null
