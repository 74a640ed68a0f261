-- State that the nodes share about certificates from an ACME authority. Written by the
-- package relay/acme.

-- certmagic's storage: accounts, keys, certificates, challenges, OCSP staples. Read
-- and written by key; listed by prefix, for which the order must be that of octets.
create table certificate_store (
	key         text        collate "C" primary key,
	value       bytea       not null,                   -- sealed, bound to key
	size        integer     not null check (size >= 0), -- octets before sealing
	modified_at timestamptz not null default clock_timestamp()
);

-- The node that may work on a name now. Taken, renewed and given back by name; a row whose
-- lease is over counts for nothing.
create table certificate_lock (
	name       text        collate "C" primary key,
	holder     text        not null, -- the node, for people who look
	token      bigint      not null, -- of this taking: writes count only with it
	expires_at timestamptz not null,
	-- Times that programs can take.
	constraint certificate_lock_times check (expires_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00')
);

-- Tokens of locks; each taking has a higher one.
create sequence certificate_lock_token;

-- How the orders for a name ended, and its certificate. Read by every node before it
-- orders, and by 'postern certificate list'.
create table certificate_state (
	authority       text        collate "C" not null, -- certmagic's key of the directory
	name            text        collate "C" not null,
	node            text        not null,             -- the last to write this
	issuer          text        not null default '',
	serial          text        not null default '',  -- hexadecimal
	not_before      timestamptz,                      -- null: none was issued yet
	not_after       timestamptz,
	renewed_at      timestamptz,                      -- when the last was issued
	failures        integer     not null default 0 check (failures >= 0), -- in a row
	failing_since   timestamptz,
	last_error      text        not null default '',
	next_try_at     timestamptz,
	renew_asked_at  timestamptz,                      -- by an admin, or null
	primary key (authority, name),
	check ((failures = 0) = (failing_since is null) and (failures = 0) = (next_try_at is null)),
	-- Times that programs can take.
	constraint certificate_state_times check (not_before between '0001-01-02 00:00+00' and '9998-12-31 00:00+00'
		and not_after between '0001-01-02 00:00+00' and '9998-12-31 00:00+00'
		and renewed_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00'
		and failing_since between '0001-01-02 00:00+00' and '9998-12-31 00:00+00'
		and next_try_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00'
		and renew_asked_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00')
);
