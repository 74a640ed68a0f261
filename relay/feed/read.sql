-- Pages of the feed (read.go). A row's place is feed_at, the number of its table (1 message, 2 history,
-- 3 audit, 4 event) and its key as text, which a restored row has as well.

-- name: state
-- Tells a reader what it must know of the feed before a page, in the same snapshot: among it where the cursor's
-- incarnation ended, and the last mark that is an hour older than its beginning. The settings
-- make the page find its rows by their indexes, whatever the statistics say, and keep its plan: to make
-- one takes as long as to read 250 rows.
select s.incarnation, s.gone, sane_time(coalesce(s.gone_at, 'epoch')), feed_horizon(),
	(select max(m.feed_at) from feed_mark m where m.incarnation = @incarnation),
	(select m.feed_at from feed_mark m where m.at < 'epoch'::timestamptz + (@incarnation::bigint - 3600000000) * interval '1 microsecond'
		order by m.at desc limit 1),
	set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),
	set_config('enable_bitmapscan', 'off', true), set_config('plan_cache_mode', 'force_generic_plan', true)
from feed_state s

-- name: page
-- The next rows behind a place. A row of history whose message is gone, as one that was written after
-- retention had deleted it, comes without the message's facts. The recipients of a message are those that
-- are not finished, and those of which the history tells. Its attempts count from 1.
with page as materialized (
	select * from (
		(select feed_at, 1 as source, id::text collate "C" as key, accepted_at as at, id as message_id, 0 as n, 0::bigint as number
			from message
			where feed_at >= @feed_at and feed_at < @horizon and (feed_at > @feed_at or @source < 1 or @source = 1 and id::text collate "C" > @key)
			order by feed_at, id::text collate "C" limit @rows)
		union all
		(select feed_at, 2, history_key(message_id, n, at, epoch), at, message_id, n, epoch
			from history
			where feed_at >= @feed_at and feed_at < @horizon
				and (feed_at > @feed_at or @source < 2 or @source = 2 and history_key(message_id, n, at, epoch) > @key)
			order by feed_at, history_key(message_id, n, at, epoch) limit @rows)
		union all
		(select feed_at, 3, lpad(id::text, 19, '0') collate "C", at, null, 0, id
			from audit
			where feed_at >= @feed_at and feed_at < @horizon and (feed_at > @feed_at or @source < 3 or @source = 3 and id > @number)
			order by feed_at, id limit @rows)
		union all
		(select feed_at, 4, lpad(id::text, 19, '0') collate "C", at, null, 0, id
			from event
			where feed_at >= @feed_at and feed_at < @horizon and (feed_at > @feed_at or @source < 4 or @source = 4 and id > @number)
			order by feed_at, id limit @rows)) all_rows
	order by feed_at, source, key limit @rows)
select p.feed_at, p.source, p.key, sane_time(p.at), p.message_id,
	coalesce(h.result, e.kind, case when p.source = 3 then 'audit' when m.voided_at is null then 'accepted' else '' end),
	coalesce(h.fenced, false), coalesce(h.outcome_unknown, false), coalesce(h.possible_duplicate, false),
	coalesce(m.user_id, e.user_id, 0), coalesce(u.name, f.name, ''), coalesce(c.label, f.credentials->>(m.credential_id::text), ''),
	coalesce(m.header_id, ''), coalesce(m.sender_local, ''), coalesce(m.sender_domain, ''), coalesce(m.size, 0), m.tags, m.metadata::text, m.id is not null,
	l.locals, l.domains,
	coalesce(h.local, ''), coalesce(h.domain, ''), coalesce(h.reply_code, 0), coalesce(h.reply_enhanced, ''), coalesce(h.reply_text, ''),
	coalesce(h.scope, ''), coalesce(h.upstream, ''), coalesce(h.remote_mta, ''), coalesce(h.remote_addr, ''), coalesce(h.tls, ''), coalesce(h.node, m.node, ''),
	case when h.started_at is not null and h.result <> 'expired' then (select count(*) from history b
		where b.message_id = h.message_id and b.n = h.n and b.at <= h.at and b.started_at is not null and b.result <> 'expired' and not b.fenced) else 0 end,
	case when h.result in ('deferred', 'unknown') then (select sane_time(r.next_attempt_at) from recipient r
		where r.message_id = h.message_id and r.n = h.n and r.state = 'waiting' and r.held_at is null) end,
	coalesce(a.actor, ''), coalesce(a.action, ''), coalesce(a.object, e.object, ''), coalesce(a.detail, e.detail)::text
from page p
	left join message m on m.id = p.message_id
	left join history h on p.source = 2 and h.message_id = p.message_id and h.n = p.n and h.at = p.at and h.epoch = p.number
	left join audit a on p.source = 3 and a.id = p.number
	left join event e on p.source = 4 and e.id = p.number
	left join app_user u on u.id = coalesce(m.user_id, e.user_id)
	left join former_user f on u.id is null and f.user_id = coalesce(m.user_id, e.user_id)
	left join credential c on c.id = m.credential_id
	left join lateral (select array_agg(x.local order by x.n) as locals, array_agg(x.domain order by x.n) as domains from (
		select distinct on (b.n) b.n, b.local, b.domain from (
			select r.n, r.local, r.domain from recipient r where r.message_id = p.message_id
			union all select y.n, y.local, y.domain from history y where y.message_id = p.message_id) b) x) l on p.source = 1
order by p.feed_at, p.source, p.key

-- name: newest
-- The last place that can be read. It is a row's, and not the horizon: a server that crashes may give
-- numbers again that no row has.
select s.incarnation, greatest(s.gone,
	(select feed_at from message where feed_at < feed_horizon() order by feed_at desc limit 1),
	(select feed_at from history where feed_at < feed_horizon() order by feed_at desc limit 1),
	(select feed_at from audit where feed_at < feed_horizon() order by feed_at desc limit 1),
	(select feed_at from event where feed_at < feed_horizon() order by feed_at desc limit 1))
from feed_state s

-- name: before
-- A place before all rows of a time and later: transactions last minutes at most, and nodes' clocks differ.
select s.incarnation, coalesce((select feed_at from feed_mark where at < @since::timestamptz - interval '10 minutes' order by at desc limit 1), 0)
from feed_state s

-- name: mark
-- Writes the mark that is due.
select mark_feed()

-- name: holder
-- Names the transaction that has held the feed back for longest, as far as this role may see: a session or a prepared
-- transaction of any database. Without that, the first mark that cannot be read tells since when.
with horizon as (select feed_horizon() as at),
open as (
	select 'process ' || pid || ' (' || coalesce(datname, '?') || ', ' || coalesce(usename, '?') || ', ' || coalesce(nullif(application_name, ''), 'no name') || ')' as who,
		xact_start as since, age(backend_xid) as age
	from pg_stat_activity where backend_xid is not null and pid <> pg_backend_pid()
	union all
	select 'prepared transaction ' || gid || ' (' || database || ', ' || owner || ')', prepared, age(transaction) from pg_prepared_xacts),
oldest as (select who, since from open order by age desc limit 1)
select coalesce(o.who, 'a transaction that is not visible'), sane_time(coalesce(o.since, m.at))
from (select min(m.at) as at from feed_mark m, feed_state s, horizon where m.incarnation = s.incarnation and m.feed_at >= horizon.at) m
	left join oldest o on true
where coalesce(o.since, m.at) is not null

-- name: former_user
-- The last removed user of a name, unless there is one of it now.
select user_id from former_user f where name = @name and not exists (select from app_user u where u.name = f.name) order by removed_at desc limit 1
