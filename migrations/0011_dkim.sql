-- The DKIM keys of sender domains. Written by the package relay/dkim/keys (docs/dkim.md).

-- A number that changes with every change of the keys, so that a node reads them only then. One
-- row, read by every node each second.
create table dkim_version (
	one boolean primary key default true check (one),
	n   bigint  not null
);
insert into dkim_version (n) values (1);

-- One row for each domain with keys. A node that holds its lease looks at the domain's records.
create table dkim_domain (
	domain       text        collate "C" primary key,
	every_days   integer     check (every_days > 0), -- how old a key gets; null: until an admin rotates it
	next_look_at timestamptz not null check (isfinite(next_look_at)),
	holder       text        not null default '',    -- the node that looks
	lease        bigint      not null default 0,     -- the number of the last lease: a result counts only with it
	lease_until  timestamptz check (isfinite(lease_until))
);
-- The domains that are due, asked for by every node each second.
create index dkim_domain_due on dkim_domain (next_look_at);

-- Primary key: a change of one key. Read whole by every node when dkim_version has changed.
create table dkim_key (
	domain     text        collate "C" not null references dkim_domain (domain) on delete cascade,
	selector   text        collate "C" not null,
	algorithm  text        not null check (algorithm in ('rsa', 'ed25519')),
	public     bytea       not null,               -- as the record has it
	sealed     bytea,                              -- the private half
	state      text        not null check (state in ('pending', 'active', 'retiring', 'retired')),
	created_at timestamptz not null check (isfinite(created_at)),
	since      timestamptz not null check (isfinite(since)),         -- that it is in this state
	looks      integer     not null default 0,     -- in a row, that have found the record at all servers; negative: at none
	gone       boolean     not null default false, -- the record is no longer there, so nothing is signed
	looked_at  timestamptz check (isfinite(looked_at)),
	found      text        not null default '',    -- what the last look found wrong
	primary key (domain, selector),
	check ((state = 'retired') = (sealed is null))
);
-- One key of a domain and algorithm signs, and one takes its place.
create unique index dkim_key_one on dkim_key (domain, algorithm, state) where state in ('pending', 'active');
