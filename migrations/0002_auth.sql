-- Users, what they may send as, their credentials and limits, and what protects the login:
-- docs/accounts.md. Written by the package auth, the audit by every package.

-- One row for each account. version rises with every change to the user, the
-- sender patterns or the credentials: a node's cache of another version is void.
create table app_user (
	id                bigint      generated always as identity primary key,
	version           bigint      not null default 1,
	created_at        timestamptz not null default now(),
	updated_at        timestamptz not null default now(),
	enabled           boolean     not null default true,
	no_limit_defaults boolean     not null default false, -- see limit_rule
	name              text        collate "C" not null,   -- canonical, see auth.CanonicalName
	disabled_reason   text        not null default '',    -- for admins; never told to clients
	in_doubt          text        not null default '' check (in_doubt = '' or is_doubt_policy(in_doubt)), -- see doubt_policy; '': as the upstream has it
	constraint app_user_name_length check (octet_length(name) between 1 and 255)
);
-- AUTH finds the user by name; "user list" pages by it.
create unique index app_user_name on app_user (name);
-- The watch asks every second which users changed lately.
create index app_user_changed on app_user (updated_at);

-- A default that changed concerns all users, and a user who was removed has no row to
-- be found by. Always one row.
create table auth_state (
	one                 boolean     primary key default true check (one),
	defaults_changed_at timestamptz not null default now()
);
insert into auth_state default values;

-- Addresses that a user may send as: a@b, *@b or *@*.b, the domain canonical, or <>.
-- Primary key: AUTH reads a user's patterns.
create table sender_pattern (
	user_id    bigint      not null references app_user (id) on delete cascade,
	created_at timestamptz not null default now(),
	resend     boolean     not null default false, -- may resend others' mail as it: docs/accounts.md, "Sender identity"
	pattern    text        collate "C" not null,
	primary key (user_id, pattern),
	constraint sender_pattern_length check (pattern = '<>' or octet_length(pattern) between 3 and 320)
);

-- Proofs of being a user. A 'password' is chosen by a person and its hash is in
-- PHC form, slow; a 'secret' is generated, is found by its id and checked by a fast
-- keyed hash.
create table credential (
	id               bigint      generated always as identity primary key,
	user_id          bigint      not null references app_user (id) on delete cascade,
	created_at       timestamptz not null default now(),
	updated_at       timestamptz not null default now(),
	expires_at       timestamptz,
	revoked_at       timestamptz,
	last_used_at     timestamptz,
	kind             text        not null,
	hash             text        not null,
	label            text        not null default '',
	allowed_networks cidr[]      not null default '{}', -- empty: from anywhere
	last_used_addr   inet,
	last_used_tls    text,
	duplicates_s     integer     check (duplicates_s between 0 and 604800), -- how long copies of mail are recognised; null: as configured
	constraint credential_kind check (kind in ('password', 'secret'))
);
-- AUTH reads the one live password of a user: a second one would cost every wrong
-- guess a second slow hash.
create unique index credential_live_password on credential (user_id)
	where kind = 'password' and revoked_at is null;
-- "credential list USER", and the cascade from app_user.
create index credential_user on credential (user_id);

-- The limits, as set: by rows without a user for all users, with a domain for its
-- users together, with a user, and with a credential for what comes by it. window_s is 0 for
-- limits that are of one message or one moment. A user with no_limit_defaults is free of the
-- first kind.
create table limit_rule (
	id            bigint  generated always as identity primary key,
	max           bigint  not null,
	window_s      integer not null default 0,
	user_id       bigint  references app_user (id) on delete cascade,
	credential_id bigint  references credential (id) on delete cascade,
	kind          text    not null,
	domain        text    collate "C" not null default '', -- canonical, of names of users
	constraint limit_rule_kind check (kind in ('messages', 'recipients', 'bytes', 'size', 'recipients_per_message', 'sessions')),
	constraint limit_rule_window check (case when kind in ('messages', 'recipients', 'bytes') then window_s between 1 and 31622400 else window_s = 0 end),
	constraint limit_rule_max check (max >= 0),
	constraint limit_rule_user check (credential_id is null or user_id is not null),
	constraint limit_rule_domain check (domain = '' or user_id is null)
);
-- AUTH reads the rules of a user, of its domain and the defaults.
create unique index limit_rule_match on limit_rule (coalesce(user_id, 0), coalesce(credential_id, 0), domain, kind, window_s);
-- The cascades.
create index limit_rule_user on limit_rule (user_id);
create index limit_rule_credential on limit_rule (credential_id) where credential_id is not null;

-- Networks from which a user has logged in: /24 and /48. Written once a day for each.
-- Primary key: AUTH reads a user's networks.
create table known_network (
	user_id  bigint      not null references app_user (id) on delete cascade,
	first_at timestamptz not null default now(), -- since then, without a gap of 30 days
	last_at  timestamptz not null default now(),
	network  cidr        not null,
	primary key (user_id, network)
);
-- Retention; last_at changes once a day.
create index known_network_last on known_network (last_at);

-- Failed logins of the last hours, shared by the nodes. key is a hash of what is
-- counted (a network, an account, or both): names are typed by strangers.
create table auth_failure (
	failures   integer     not null,
	since      timestamptz not null,
	updated_at timestamptz not null,
	key        bytea       primary key,
	constraint auth_failure_counts check (failures >= 0),
	-- Times that programs can take.
	constraint auth_failure_times check (since between '0001-01-02 00:00+00' and '9998-12-31 00:00+00'
		and updated_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00')
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
-- Each node reads every half second what others have counted.
create index auth_failure_updated on auth_failure (updated_at);

-- The deeds of admins. A row is written in the transaction of the change that it records.
create table audit (
	id      bigint      generated always as identity primary key,
	at      timestamptz not null default clock_timestamp(),
	feed_at bigint      not null default feed_now(), -- as in message
	actor   text        not null, -- the operating system's user
	action  text        not null, -- 'user disable'
	object  text        not null, -- 'alice@example.com'
	detail  jsonb       not null default '{}'
);
-- Retention, and "audit --since".
create index audit_at on audit (at);
-- The feed.
create index audit_feed on audit (feed_at);
