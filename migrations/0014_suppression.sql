-- Recipients that get no mail (docs/suppression.md). Written by the package relay/suppression,
-- also in the transactions of relay/queue that settle attempts; the patterns by the package auth.

-- Primary key: RCPT asks for an address of a user and of nobody, and so do bounces and deliveries.
create table suppression (
	user_id     bigint      not null,                           -- 0: of all users
	message_id  uuid,                                           -- of the last bounce
	strikes     integer     not null default 1,                 -- bounces, while the entry lived
	hits        bigint      not null default 0,                 -- recipients refused
	added_at    timestamptz not null default clock_timestamp(),
	struck_at   timestamptz,                                    -- the last bounce, as the history has it
	expires_at  timestamptz,                                    -- null: never
	last_hit_at timestamptz,
	changed     xid8        not null default pg_current_xact_id(), -- what made it, or made it live longer
	address     text        collate "C" not null,               -- as suppression.Key gives it; of nobody also *@domain and *@*.domain
	source      text        not null check (source in ('bounce', 'admin')),
	reason      text        not null default '',                -- of an admin
	reply       text        not null default '',                -- of the last bounce
	primary key (user_id, address),
	check (isfinite(added_at) and isfinite(expires_at) and strikes > 0 and hits >= 0),
	check (case source when 'admin' then struck_at is null else user_id > 0 and expires_at is not null and struck_at is not null end)
) with (fillfactor = 85, autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 2000);
-- Each node asks every second what has changed.
create index suppression_changed on suppression (changed);
-- 'suppression list ADDRESS'.
create index suppression_address on suppression (address);
-- Deletes entries whose time is over.
create index suppression_expires on suppression (expires_at) where expires_at is not null;

-- Recipients that a user, or one of its credentials, may write to or not: a@b, *@b or *@*.b, the
-- domain canonical. Primary key: AUTH reads those of a user.
create table recipient_pattern (
	user_id       bigint  not null references app_user (id) on delete cascade,
	credential_id bigint  references credential (id) on delete cascade, -- null: mail by any of the user's
	allow         boolean not null,
	pattern       text    collate "C" not null check (octet_length(pattern) between 3 and 320)
);
create unique index recipient_pattern_match on recipient_pattern (user_id, coalesce(credential_id, 0), pattern);
-- The cascade.
create index recipient_pattern_credential on recipient_pattern (credential_id) where credential_id is not null;

-- Mail by the credential refuses suppressed recipients, accepts them to fail, or ignores the list.
alter table credential add column suppressed text not null default 'refuse' check (suppressed in ('refuse', 'accept', 'ignore'));
