-- Webhooks (docs/webhooks.md). Read and written by the package relay/webhook.

-- An endpoint that is sent events, and its place in the feed.
-- The name's index: commands name it; the user's: the cascade, and how many a user has.
create table webhook (
	id          bigint      generated always as identity primary key,
	user_id     bigint      references app_user (id) on delete cascade, -- null: events of all, and of the system
	at_once     integer     not null check (at_once between 1 and 64),
	failures    integer     not null default 0,            -- tries in a row that failed
	given_up    bigint      not null default 0,            -- events
	created_at  timestamptz not null default clock_timestamp(),
	place_at    timestamptz not null default clock_timestamp(), -- what happened before this was read, or is in webhook_retry
	wait_until  timestamptz,                               -- nothing is sent before
	gone_until  timestamptz,                               -- events before this were deleted unread; the last time that this happened
	gone_at     timestamptz,                               -- when it was noticed
	old_until   timestamptz,                               -- when the former secret ends
	lease_until timestamptz,
	owner       uuid,                                      -- the process that sends
	lenient     boolean     not null default false,        -- of the cursor
	name        text        not null unique,
	url         text        not null check (octet_length(url) <= 1000),
	kinds       text[]      not null default '{}',         -- empty: all
	state       text        not null default 'active' check (state in ('active', 'paused', 'disabled')),
	reason      text        not null default '',           -- why it is disabled
	cursor      text        not null,                      -- behind the last event that was tried
	secret      bytea       not null,                      -- sealed: the secret, and behind it the former one
	check ((owner is null) = (lease_until is null)),
	check ((gone_until is null) = (gone_at is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
create index webhook_user on webhook (user_id);

-- Events that wait for another try, or for a replay.
create table webhook_retry (
	webhook_id bigint      not null references webhook (id) on delete cascade,
	event_id   uuid        not null,
	tries      integer     not null,                       -- that failed
	status     integer     not null default 0,             -- of the last answer; 0: there was none
	first_at   timestamptz not null default clock_timestamp(),
	next_at    timestamptz not null,
	kind       text        not null,
	error      text        not null default '',
	body       text        not null,                       -- as it was sent first
	primary key (webhook_id, event_id),
	check (isfinite(next_at) and isfinite(first_at))
) with (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 500);
-- Finds the events that are due.
create index webhook_retry_next on webhook_retry (webhook_id, next_at);

-- The last tries of each webhook.
create table webhook_try (
	id         bigint      generated always as identity primary key,
	webhook_id bigint      not null references webhook (id) on delete cascade,
	event_id   uuid        not null,
	at         timestamptz not null default clock_timestamp(),
	status     integer     not null,
	took_ms    integer     not null,
	kind       text        not null,
	error      text        not null,                       -- empty: it was taken
	answer     text        not null                        -- the beginning of the answer's body
) with (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 1000);
-- 'webhook show', and the deletion of older ones.
create index webhook_try_of on webhook_try (webhook_id, id);
