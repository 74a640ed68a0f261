-- The queue. docs/queue-states.md says what its rows mean. No foreign keys: every
-- writer is in relay/queue, and the checks would cost a third of an enqueue.

-- One row for each start of a process: its epoch, which fences all its writes.
create table node (
	epoch         bigint generated always as identity primary key,
	name          text        not null,
	started_at    timestamptz not null default clock_timestamp(),
	beat_at       timestamptz not null default clock_timestamp(),
	expires_at    timestamptz not null,          -- end of the lease, by this clock
	superseded_at timestamptz,                   -- a later process of the same name started
	reaped_at     timestamptz,                   -- dead: ended by itself or by a reaper
	touched       bigint      not null default 0 -- written by a repeated insert, see relay/queue/commit.go
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The envelope of every accepted message; insert-only, kept as history. The ids
-- are UUIDv7, so the primary key is also the order of acceptance.
-- Primary key: trace, claims, and the retention that deletes from its low end.
create table message (
	id            uuid        primary key,
	user_id       bigint      not null,
	credential_id bigint      not null,
	sender_local  text        not null,
	sender_domain text        not null,          -- both empty: the null path
	size          bigint      not null,
	body_type     text        not null,
	utf8          boolean     not null,
	ret           text        not null,
	envid         text        not null,
	header_id     text        not null,          -- the Message-ID field
	accepted_at   timestamptz not null,
	client_addr   text        not null,
	client_hello  text        not null,
	listener      text        not null,
	tls           text        not null,
	node          text        not null,
	recipients    integer     not null,
	voided_at     timestamptz                    -- answered 451 after all: never to be delivered
);

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
	primary key (message_id, n)
) with (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
	autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
alter table body alter column chunk set storage external;

-- The live recipients: narrow, without body, one row for each.
-- Primary key: settle, release, and the question whether a message has rows left.
create table recipient (
	message_id         uuid        not null,
	n                  integer     not null,
	state              text        not null default 'queued' check (state in ('queued', 'failed', 'delivered')),
	owner              bigint,
	dot_possible       boolean     not null default false, -- the owner may have sent the final dot
	possible_duplicate boolean     not null default false, -- an earlier owner may have delivered
	attempts           integer     not null default 0,
	accepted_at        timestamptz not null default now(),
	next_attempt_at    timestamptz not null default now(),
	expires_at         timestamptz not null,
	held_at            timestamptz,
	notice_at          timestamptz,                        -- when the sender is to be told, if no owner has the row
	delay_noticed      boolean     not null default false,
	tell               smallint    not null,               -- 1 failure, 2 delay, 4 success: what the sender wants to hear
	notify             smallint    not null,               -- RFC 3461, to be passed on
	domain_key         text        not null,
	local              text        not null,
	domain             text        not null,
	orcpt_type         text        not null,
	orcpt              text        not null,
	last_attempt_at    timestamptz,
	reply_code         integer     not null default 0,     -- the last reply
	reply_enhanced     text        not null default '',
	reply_text         text        not null default '',
	remote_mta         text        not null default '',
	primary key (message_id, n)
) with (fillfactor = 85, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
	autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_scale_factor = 0.2);

-- Claim, first step: which domains have fallen due since the last look.
create index recipient_due on recipient (next_attempt_at, domain_key)
	where owner is null and held_at is null and state = 'queued';
-- Claim, second step: the oldest due rows of one domain, siblings side by side.
create index recipient_domain on recipient (domain_key, next_attempt_at, message_id)
	where owner is null and held_at is null and state = 'queued';
-- Reap, leftovers, hand-back at the end: the rows of one epoch.
create index recipient_owner on recipient (owner) where owner is not null;
-- ClaimNotices: the rows whose sender is to be told.
create index recipient_notice on recipient (notice_at) where notice_at is not null and owner is null;

-- What happened to each recipient: every finished attempt and every act of an
-- operator or of the queue itself. Insert-only, kept as history.
-- Primary key: trace; and writing an outcome twice writes one row.
create table attempt (
	message_id         uuid        not null,
	n                  integer     not null,
	at                 timestamptz not null,
	epoch              bigint      not null,
	result             text        not null check (result in ('delivered', 'deferred', 'failed', 'expired', 'unknown',
	                                                          'noticed', 'retry', 'hold', 'release', 'cancel', 'void')),
	started_at         timestamptz,
	local              text        not null default '',
	domain             text        not null default '',
	reply_code         integer     not null default 0,
	reply_enhanced     text        not null default '',
	reply_text         text        not null default '',
	remote_mta         text        not null default '',
	remote_addr        text        not null default '',
	tls                text        not null default '',
	upstream           text        not null default '',
	node               text        not null default '',
	outcome_unknown    boolean     not null default false, -- the final dot went out, no reply came back
	possible_duplicate boolean     not null default false, -- an earlier attempt may have delivered
	dsn_passed         boolean     not null default false,
	fenced             boolean     not null default false, -- the epoch had lost the row: recorded, not applied
	primary key (message_id, n, at, epoch)
);
