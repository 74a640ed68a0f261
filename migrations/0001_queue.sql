-- The queue: mail that waits, its history, and the holds. Written by relay/queue, and by
-- relay/queue/desk and relay/retention beside it;
-- docs/queue-states.md says what the rows mean. There are no foreign keys: the checks would
-- cost a third of an enqueue. In each table the columns of fixed width come first, those
-- that may be null last among them: PostgreSQL finds them without reading what is in front
-- of them, and pads less.

-- The place of a row in the feed of events (docs/events.md): the number of its transaction, and
-- an offset that begin_incarnation in migrations/0013_events.sql raises where numbers begin anew. So it
-- is in the body, which statements take in. Not immutable: a plan must hear of another body.
create function feed_now() returns bigint language sql stable as $$
	select pg_current_xact_id()::text::bigint + 0
$$;

-- Live mail ---------------------------------------------------------------------

-- One row for each start of a process: its epoch, which fences all its writes.
create table node (
	epoch         bigint      generated always as identity primary key,
	started_at    timestamptz not null default clock_timestamp(),
	beat_at       timestamptz not null default clock_timestamp(),
	expires_at    timestamptz not null,           -- end of the lease, by this clock
	superseded_at timestamptz,                    -- a later process of the same name started
	reaped_at     timestamptz,                    -- dead: ended by itself or by a reaper
	strict_gate   boolean     not null default false, -- it marks rows before their final dot, and only then
	name          text        not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- The view for other packages: their rows of an epoch count while it is in here (sessions,
-- migrations/0003_quota.sql and 0010_budget.sql).
create view live_epoch as select epoch, name from node where reaped_at is null;

-- The envelope of every accepted message; insert-only, kept as history. The ids are UUIDv7,
-- so the primary key is also the order of acceptance. utf8 and body_type say what a next hop
-- must offer, not what the client declared: docs/decisions/needs.md.
-- Primary key: trace, claims, and the retention that deletes from its low end.
-- Vacuum, here and of history (docs/postgres.md): a twentieth, not a fifth, of millions of
-- rows. History is written once and deleted weeks later, so a page is frozen when it is
-- first vacuumed and need not be read again for that. No table here is analyzed for fewer
-- than some ten thousand changes: on a busy server that would be once a second, for a
-- quarter of its CPU, and no statement of the queue goes by statistics.
create table message (
	id            uuid        primary key,
	user_id       bigint      not null,
	credential_id bigint      not null,
	size          bigint      not null,
	accepted_at   timestamptz not null,
	feed_at       bigint      not null default feed_now(),
	recipients    integer     not null,
	utf8          boolean     not null,               -- needs SMTPUTF8
	eight_bit     boolean     not null default false, -- octets beyond ASCII in the text
	voided_at     timestamptz,                        -- answered 451 after all: never to be delivered
	tls_need      text,                               -- RFC 8689: 'required', 'optional'; null, or '', without
	-- SHA-256 of the body for DKIM; null: the author's domain had no key, so the message goes unsigned.
	body_hash     bytea,
	sender_local  text        not null,
	sender_domain text        not null,               -- both empty: the null path
	body_type     text        not null,               -- '8BITMIME': eight_bit, and declared so; else ''
	ret           text        not null,
	envid         text        not null,
	header_id     text        not null,               -- the Message-ID field
	client_addr   text        not null,
	client_hello  text        not null,
	listener      text        not null,
	tls           text        not null,
	node          text        not null,
	rule          text        not null default '',    -- what the policy said, for trace
	usage         jsonb,                              -- of its limits, with this message; null without limits
	tags          text[],                             -- of the sender's application (docs/duplicates.md); null without
	metadata      jsonb,
	constraint message_counts check (size >= 0 and recipients >= 0)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000,
	autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 50000,
	autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 50000, autovacuum_freeze_min_age = 0);
-- Trace by Message-ID, and by sender.
create index message_header_id on message (header_id);
create index message_sender on message (lower(sender_local || '@' || sender_domain), id);
-- The feed. Rows of one transaction share an entry.
create index message_feed on message (feed_at);

-- The octets of live messages, in rows of 8,100 octets: the most that a page holds in
-- one row, which the target keeps in the row itself. As larger rows, cut up by TOAST,
-- they would be four times as many, with as many index entries. EXTERNAL: compressing
-- mail costs eight times the insert for nothing. Vacuum does not pause: a table that
-- grows while the room of what was delivered is not free again costs more than it saves.
-- Primary key: reading and deleting one message's rows in order.
create table body (
	message_id uuid    not null,
	n          integer not null,
	chunk      bytea   not null,
	primary key (message_id, n),
	constraint body_counts check (n >= 0)
) with (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
	autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0,
	autovacuum_analyze_threshold = 50000);
alter table body alter column chunk set storage external;

-- The octets of large messages, over 1 MiB: as in body, but in four tables that are
-- used in turn. Nothing is deleted in them: a table in which nothing is waited for is
-- truncated as a whole, which needs neither the deletion of a thousand rows for each
-- message nor the vacuum after it. Mail that waits long moves to body. See
-- relay/retention/bodies.go and docs/decisions/queue-bodies.md.
-- Storage is set before the partitions are made: without a column that could be
-- TOASTed they have no TOAST table, one file less to truncate.
create table large_body (
	message_id uuid     not null,
	n          integer  not null,
	turn       smallint not null,
	chunk      bytea    not null,
	-- Reading one message's rows in order, and stepping from message to message.
	primary key (message_id, n, turn),
	constraint large_body_counts check (n >= 0)
) partition by list (turn);
alter table large_body alter column chunk set storage plain;
create table large_body_0 partition of large_body for values in (0) with (autovacuum_enabled = false);
create table large_body_1 partition of large_body for values in (1) with (autovacuum_enabled = false);
create table large_body_2 partition of large_body for values in (2) with (autovacuum_enabled = false);
create table large_body_3 partition of large_body for values in (3) with (autovacuum_enabled = false);

-- Which of the tables is written to now. Always four rows, read whole.
create table large_turn (
	turn       smallint    primary key,
	writing    boolean     not null,
	changed_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
-- At most one is written to.
create unique index large_turn_writing on large_turn (writing) where writing;
insert into large_turn (turn, writing) values (0, true), (1, false), (2, false), (3, false);

-- Every stored octet, wherever it is.
create view stored_body as
	select message_id, n, chunk from body
	union all
	select message_id, n, chunk from large_body;

-- The policies for mail in doubt (docs/delivery.md): it is sent again where it may be, held for a
-- person, or its sender is told.
create function is_doubt_policy(policy text) returns boolean language sql immutable as $$
	select policy in ('retry', 'hold', 'notice')
$$;

-- The live recipients: narrow, without body, one row for each.
-- Primary key: settle, release, and the question whether a message has rows left.
create table recipient (
	message_id         uuid        not null,
	n                  integer     not null,
	attempts           integer     not null default 0,
	user_id            bigint      not null,               -- the message's: what an admin does to a user's mail reads no other
	accepted_at        timestamptz not null default now(),
	next_attempt_at    timestamptz not null default now(),
	expires_at         timestamptz not null,
	reply_code         integer     not null default 0,     -- the last reply, as are the other reply columns
	tell               smallint    not null,               -- 1 failure, 2 delay, 4 success: what the sender wants to hear; 8: it is suppressed
	notify             smallint    not null,               -- RFC 3461, to be passed on
	dot_possible       boolean     not null default false, -- the owner may have sent the final dot
	possible_duplicate boolean     not null default false, -- an earlier owner may have delivered
	delay_noticed      boolean     not null default false,
	owner              bigint,
	held_at            timestamptz,
	notice_at          timestamptz,                        -- when the sender is to be told, if the row has no owner
	last_attempt_at    timestamptz,
	state              text        not null default 'waiting' check (state in ('waiting', 'failed', 'delivered')),
	domain_key         text        not null,
	local              text        not null,
	domain             text        not null,
	orcpt_type         text        not null,
	orcpt              text        not null,
	reply_enhanced     text        not null default '',
	reply_text         text        not null default '',
	remote_mta         text        not null default '',
	last_upstream      text        not null default '',    -- of the last attempt, or of which it waits, for the queue's listing
	-- What the row waits for beside its time (docs/delivery.md): a way that is left alone, 'mx ' ||
	-- domain_key or 'upstream ' || name; a budget, 'budget ' or 'sessions ' || name; or 'route'. Null for
	-- all others. The end of an attempt writes it.
	waits_for          text,
	mid_text           boolean     not null default false, -- the last reply came in the middle of the message's text
	-- The only way that the row may take, an upstream's name or 'mx': a final dot without a complete
	-- reply went there, or may have (docs/delivery.md); null for all others.
	stays_with         text,
	-- The policy of mail in doubt; null for all others. A function here would be parsed by every
	-- statement that writes a row.
	doubt              text        check (doubt in ('retry', 'hold', 'notice')),
	scope              text,                               -- of the last reply, as in the history
	-- Why the queue itself holds the row; null for all others. A release clears it.
	set_aside          text,
	primary key (message_id, n),
	constraint recipient_counts check (n >= 0 and attempts >= 0 and tell >= 0 and notify >= 0 and reply_code >= 0)
) with (fillfactor = 85, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2, autovacuum_analyze_threshold = 20000);

-- Claim, first step: which domains have fallen due since the last look.
create index recipient_due on recipient (next_attempt_at, domain_key)
	where owner is null and held_at is null and state = 'waiting';
-- Claim, second step: the oldest due rows of one domain, siblings side by side.
create index recipient_domain on recipient (domain_key, next_attempt_at, message_id)
	where owner is null and held_at is null and state = 'waiting';
-- Reap, leftovers, hand-back at the end: the rows of one epoch.
create index recipient_owner on recipient (owner) where owner is not null;
-- ClaimNotices: the rows whose sender is to be told. Held rows are left out: nobody is told
-- of them, and a user with many would have them read again and again.
create index recipient_notice on recipient (notice_at)
	where notice_at is not null and owner is null and (state <> 'waiting' or held_at is null);
-- "queue hold --user" and the like; like recipient_due it has only what waits. Other
-- questions about live recipients (by address) read them all: one more index would be
-- written with each message.
create index recipient_user on recipient (user_id, message_id)
	where owner is null and held_at is null and state = 'waiting';
-- "queue release --user", "queue list --state held", and whether a credential's hold still
-- holds something. Only holds write it.
create index recipient_held on recipient (user_id, message_id) where held_at is not null;
-- "queue list --in-doubt", and how much is in doubt. Only lost replies write it.
create index recipient_doubt on recipient (doubt, message_id) where doubt is not null and state = 'waiting';
-- Recovered: what is due because its destination is back, in the order of acceptance. Only mail
-- that waits for a way writes it.
create index recipient_way on recipient (waits_for, message_id) where waits_for is not null and owner is null and held_at is null;
-- lease_budget: when the last that waits for a budget has its turn; and what is due of a line.
create index recipient_waits on recipient (waits_for, next_attempt_at) where waits_for is not null and owner is null and held_at is null;

-- Mail of a user (credential_id 0), or of one credential, that waits for an admin.
-- Primary key: each message that comes in or comes back is looked up.
create table hold (
	user_id       bigint      not null,
	credential_id bigint      not null default 0,
	made_at       timestamptz not null default clock_timestamp(),
	reason        text        not null,
	made_by       text        not null,
	primary key (user_id, credential_id)
);

-- History -----------------------------------------------------------------------

-- The history of each recipient: every finished attempt and every act of an
-- operator or of the queue itself. Insert-only, kept as history.
-- Primary key: trace; and writing an outcome twice writes one row.
create table history (
	message_id         uuid        not null,
	n                  integer     not null,
	reply_code         integer     not null default 0,
	at                 timestamptz not null,
	epoch              bigint      not null,
	feed_at            bigint      not null default feed_now(),
	outcome_unknown    boolean     not null default false, -- the final dot went out, no reply came back
	possible_duplicate boolean     not null default false, -- an earlier attempt may have delivered
	dsn_passed         boolean     not null default false,
	fenced             boolean     not null default false, -- the epoch had lost the row: recorded, not applied
	started_at         timestamptz,
	result             text        not null check (result in ('delivered', 'deferred', 'failed', 'suppressed', 'expired', 'unknown',
	                                                          'noticed', 'retry', 'hold', 'release', 'cancel', 'resolve', 'resend', 'void', 'duplicate')),
	local              text        not null default '',
	domain             text        not null default '',
	reply_enhanced     text        not null default '',
	reply_text         text        not null default '',
	remote_mta         text        not null default '',
	remote_addr        text        not null default '',
	tls                text        not null default '',
	upstream           text        not null default '',
	node               text        not null default '',
	sent_as            text,                                   -- the mailbox in the sender's place, if there was one
	scope              text,                                   -- what was at fault, if neither the recipient nor the message
	left_ways          jsonb,                                  -- the attempt's other ways (type LeftWay); null: none
	primary key (message_id, n, at, epoch)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000,
	autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 50000,
	autovacuum_analyze_scale_factor = 0.05, autovacuum_analyze_threshold = 50000, autovacuum_freeze_min_age = 0);
-- Trace by recipient.
create index history_recipient on history (lower(local || '@' || domain), message_id);
-- The feed, as message_feed.
create index history_feed on history (feed_at);

-- The notices among the messages, written with them. In a table of its own, so that
-- accepting mail has nothing to do with it.
-- Primary key: the end of a recipient, the trace and the deletion of a notice.
create table notice (
	message_id uuid        primary key,
	about      uuid        not null, -- the message that it is about
	user_id    bigint      not null, -- that message's
	again      boolean     not null, -- not the first of its kind
	lost_at    timestamptz,
	told_at    timestamptz,          -- the log and the metrics of some node have the loss
	kind       text        not null check (kind in ('failure', 'doubt', 'delay', 'success')),
	lost       text        check (lost in ('failed', 'expired', 'cancelled')), -- ended undelivered, and how
	check ((lost is null) = (lost_at is null))
);
-- The trace of a message: its notices.
create index notice_about on notice (about);
-- TellLost: losses that are not in a log yet.
create index notice_untold on notice (lost_at) where lost is not null and told_at is null;
-- sqlToldBefore: how many a user has had within the last hour (docs/queue-states.md, rule 11).
create index notice_again on notice (user_id, message_id) where again;

-- Where the deletion of old history is (docs/retention.md), for all nodes: the node that
-- has locked the row does the next batch. Always one row.
create table history_walk (
	one      boolean     primary key default true check (one),
	past     uuid        not null default '00000000-0000-0000-0000-000000000000', -- the last message that was looked at
	began_at timestamptz not null default clock_timestamp(),                      -- when it last began with the oldest
	next_at  timestamptz not null default clock_timestamp()                       -- when the next batch may be
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
insert into history_walk default values;

-- A full disk -------------------------------------------------------------------

-- Octets that are given back when the disk is full, to make room for outcomes:
-- relay/queue/reserve/room.go, docs/decisions/reserve.md. It is always empty: its rows are
-- undone, and their pages stay. So dumps are not larger for it, and as it is unlogged it
-- costs no log, is in no base backup, and is emptied by the recovery after a crash, which
-- needs room as well. Rows this short need no TOAST table.
create unlogged table reserve (
	filler bit(15000) not null
) with (autovacuum_enabled = false, vacuum_truncate = false);

-- Always one row: when a node last made the reserve, or tried to, and since when the disk is
-- full. Accepting mail has nothing to do with it.
create table room (
	tried_at timestamptz not null default 'epoch',
	trying   boolean     not null default false, -- still, or the server has died of it
	full_at  timestamptz
) with (fillfactor = 50);
insert into room default values;

-- Functions ---------------------------------------------------------------------

-- Truncates one of the tables if no message in it has a recipient, and says whether
-- it did. One call is one round trip: a node that is stopped right here keeps nobody
-- waiting. The table is named, for by way of large_body the others would be locked too.
create function clear_large_body(turn smallint) returns boolean language plpgsql as $$
declare
	name  text := 'large_body_' || turn;
	waits boolean;
begin
	execute format('lock table %I in access exclusive mode nowait', name);
	execute format('
		with recursive w(message_id) as (
			(select message_id from %1$I order by message_id limit 1)
			union all
			select (select b.message_id from %1$I b where b.message_id > w.message_id order by b.message_id limit 1)
			from w where w.message_id is not null)
		select exists (select from w where exists (select from recipient r where r.message_id = w.message_id))', name) into waits;
	if not waits then
		execute format('truncate %I', name);
	end if;
	return not waits;
exception when lock_not_available then -- somebody reads or writes there
	return false;
end
$$;

-- When a row that goes back to waiting is held: as it was, or now if its user or its
-- credential is on hold.
create function held_since(message_id uuid, held_at timestamptz) returns timestamptz
language sql stable as $$
	select coalesce($2, (select now() from message m join hold h on h.user_id = m.user_id and h.credential_id in (0, m.credential_id)
		where m.id = $1 and exists (select from hold) limit 1))
$$;

-- In a statement's select list it makes the statement's own commit wait for durability, whatever
-- the defaults of the role, the database or a pooler's last client are. remote_apply is stronger
-- and stays.
create function durably() returns text language sql as $$
	select set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)
$$;

-- A time that programs can take: the epoch in place of one that they cannot.
create function sane_time(t timestamptz) returns timestamptz language sql immutable parallel safe as $$
	select case when t not between '0001-01-02 00:00+00' and '9998-12-31 00:00+00' then 'epoch' else t end
$$;

-- Times that programs can take are all that these tables take: one that is infinite, or in
-- no calendar, once stopped every claim of every node. docs/queue-states.md says what becomes
-- of mail whose rows are bad all the same ("set aside").
do $$
declare
	t record;
begin
	for t in
		select c.relname as name,
			string_agg(format('%I between ''0001-01-02 00:00+00'' and ''9998-12-31 00:00+00''', a.attname), ' and ' order by a.attnum) as sane
		from pg_class c join pg_attribute a on a.attrelid = c.oid
		where c.relnamespace = current_schema()::regnamespace and a.atttypid = 'timestamptz'::regtype
			and c.relname in ('node', 'message', 'recipient', 'large_turn', 'hold', 'notice', 'room', 'history_walk')
		group by c.relname
	loop
		execute format('alter table %I add constraint %I check (%s)', t.name, t.name || '_times', t.sane);
	end loop;
end
$$;
