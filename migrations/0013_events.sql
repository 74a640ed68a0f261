-- The feed of events (docs/events.md). Read, and its marks written, by the package relay/feed.

-- Events that no other row tells of: those of users, upstreams and keys. Insert-only, written in
-- the transaction of the change.
-- Primary key: the order within a transaction.
create table event (
	id      bigint      generated always as identity primary key,
	at      timestamptz not null default clock_timestamp(),
	feed_at bigint      not null default feed_now(),
	user_id bigint,                                  -- null: the system's, which no user's reader sees
	kind    text        not null,                    -- 'limit.near'; relay/feed has all
	object  text        not null,                    -- an upstream's name, a limit, a domain
	detail  jsonb       not null default '{}',
	check (isfinite(at))
);
create index event_feed on event (feed_at);
-- Retention.
create index event_at on event (at);

-- The names that a user and its credentials had, for the events of mail that outlive the user.
-- Primary key: the feed's page. Written when a user is removed.
create table former_user (
	user_id     bigint      primary key,
	removed_at  timestamptz not null default clock_timestamp(),
	name        text        not null,
	credentials jsonb       not null                 -- their labels by their ids
);
-- Retention.
create index former_user_removed on former_user (removed_at);

-- Points of the feed, one a minute while some node runs. Each is of the incarnation that it was
-- made in: when that began, in microseconds since 1970 by this server's clock.
-- Primary key: the end of an incarnation.
create table feed_mark (
	incarnation bigint      not null,
	feed_at     bigint      not null,
	at          timestamptz not null default clock_timestamp(),
	primary key (incarnation, feed_at),
	check (isfinite(at))
);
-- The point of a time; retention.
create index feed_mark_at on feed_mark (at);

-- Always one row.
create table feed_state (
	one         boolean     primary key default true check (one),
	incarnation bigint      not null default 0,      -- the current one; 0 before the first mark
	gone        bigint      not null default 0,      -- the highest feed_at that retention has deleted
	gone_at     timestamptz,                         -- when the event there was
	identity    text        not null default '',     -- the database in which this incarnation lives
	check ((gone = 0) = (gone_at is null))
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
insert into feed_state default values;

-- The key of a row of history as text: the same wherever it is restored, and ordered as the messages.
create function history_key(message_id uuid, n integer, at timestamptz, epoch bigint) returns text language sql stable as $$
	select (message_id::text || '.' || lpad(n::text, 9, '0') || '.' || (extract(epoch from sane_time(at)) * 1000000)::bigint::text || '.' || epoch::text) collate "C"
$$;

-- Why the mail of a user, or of a credential, is held, for the history of a message that is held by that.
create function held_because(message_id uuid) returns text language sql stable as $$
	select coalesce((select case h.credential_id when 0 then 'the user' else 'the credential' end || ' is on hold: ' || h.reason
		from message m join hold h on h.user_id = m.user_id and h.credential_id in (0, m.credential_id)
		where m.id = $1 order by h.credential_id limit 1), '')
$$;

-- A page of the feed ends before this place: all rows below are visible to this statement, or undone.
-- As feed_now, it has the offset in its body.
create function feed_horizon() returns bigint language sql stable as $$
	select pg_snapshot_xmin(pg_current_snapshot())::text::bigint + 0
$$;

-- Tells a database from all others that could go on in its place with numbers of transactions that
-- it has given already: restored, promoted, recovered or set back. All of them need another start of
-- a server, or another database.
create function feed_identity() returns text language sql stable as $$
	select (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint || ' ' || oid from pg_database where datname = current_database()
$$;

-- Begins an incarnation; the row of feed_state is locked. Where this server's numbers are lower than
-- places in the feed, as after a dump was restored, new rows come behind all others, and so do
-- those that were written before this: they have the numbers of their transactions.
create function begin_incarnation() returns bigint language plpgsql as $$
declare
	new_one bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
	top     bigint;
	xid     bigint := pg_current_xact_id()::text::bigint;
	plus    bigint := feed_now() - xid;
	-- When this database's feed_now was made: rows with a lower number were restored.
	made    bigint := xid - ((xid - (select p.xmin::text::bigint from pg_proc p where p.oid = 'feed_now'::regproc)) & 4294967295);
	raised  bigint;
	name    text;
	schema  text := current_schema();
begin
	for i in 1 .. 2 loop
		-- The horizon has the snapshot's xmin; xmax is above all that this statement can see.
		select greatest(s.gone, (select max(feed_at) from feed_mark), (select max(feed_at) from message),
			(select max(feed_at) from history), (select max(feed_at) from audit), (select max(feed_at) from event)) into top from feed_state s
			where greatest(s.gone, (select max(feed_at) from feed_mark), (select max(feed_at) from message),
			(select max(feed_at) from history), (select max(feed_at) from audit), (select max(feed_at) from event))
				>= pg_snapshot_xmax(pg_current_snapshot())::text::bigint + plus;
		exit when top is null;
		if i = 1 then
			lock table message, history, audit, event in share row exclusive mode;
		else
			raised := top + 1;
			execute format('create or replace function %I.feed_now() returns bigint language sql stable as %L', schema,
				format(' select pg_current_xact_id()::text::bigint + %s ', raised));
			execute format('create or replace function %I.feed_horizon() returns bigint language sql stable as %L', schema,
				format(' select pg_snapshot_xmin(pg_current_snapshot())::text::bigint + %s ', raised));
			foreach name in array array['message', 'history', 'audit', 'event'] loop
				execute format('update %I set feed_at = $1 where feed_at between $2 and $3 and (feed_at - $4) & 4294967295 = xmin::text::bigint', name)
					using xid + raised, made + plus, pg_snapshot_xmax(pg_current_snapshot())::text::bigint + plus, plus;
			end loop;
			plus := raised;
		end if;
	end loop;
	update feed_state set incarnation = greatest(new_one, incarnation + 1), identity = feed_identity() returning incarnation into new_one;
	insert into feed_mark (incarnation, feed_at) values (new_one, xid + plus);
	return new_one;
end
$$;

-- Writes a mark if the last one is a minute old, and begins an incarnation if this is another
-- database. It runs with the rights of the schema's owner: feed_now is replaced by nobody else.
create function mark_feed() returns bigint language plpgsql security definer as $$
declare
	s feed_state;
begin
	select * into s from feed_state;
	if s.identity = feed_identity() and exists (select from feed_mark where incarnation = s.incarnation and at > clock_timestamp() - interval '1 minute') then
		return s.incarnation;
	end if;
	select * into s from feed_state for update;
	if s.identity <> feed_identity() then
		return begin_incarnation();
	end if;
	insert into feed_mark (incarnation, feed_at) select s.incarnation, feed_now()
		where not exists (select from feed_mark where incarnation = s.incarnation and at > clock_timestamp() - interval '1 minute');
	return s.incarnation;
end
$$;
-- Nobody's temporary tables take the place of the schema's.
do $$ begin execute format('alter function mark_feed() set search_path = %I, pg_temp', current_schema()); end $$;
