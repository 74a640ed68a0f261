-- Upstream accounts, written by the package relay/upstream, and the rules that choose among
-- them, by relay/route.

-- One smarthost account. Read whole by every node every few seconds into its
-- routing table, and by 'postern upstream list'.
create table upstream (
	name            text        collate "C" primary key,
	host            text        not null check (host <> ''),
	port            integer     not null check (port between 1 and 65535),
	tls             text        not null check (tls in ('none', 'opportunistic', 'require', 'implicit')),
	username        text        not null default '',
	password        bytea,                           -- sealed, bound to name and username; null: none
	ca              text        not null default '', -- PEM; '': the system's authorities
	max_connections integer     not null default 0 check (max_connections >= 0),
	created_at      timestamptz not null default now(),
	check ((username = '') = (password is null)),
	-- Credentials go only over verified TLS.
	check (username = '' or tls in ('require', 'implicit'))
);

-- One rule: null columns match everything. Read whole into the routing table in
-- the order (default route last, position, id); the first match wins.
create table route (
	id               bigint      generated always as identity primary key,
	position         integer     not null,
	user_id          bigint,
	sender_domain    text        collate "C", -- as smtp.Address.DomainKey gives it
	recipient_domain text        collate "C",
	via              text        not null check (via in ('mx', 'upstream')),
	created_at       timestamptz not null default now()
);
-- Two rules with one match: the second could never be reached.
create unique index route_match on route
	(coalesce(user_id, 0), coalesce(sender_domain, ''), coalesce(recipient_domain, ''));

-- The upstreams of a rule in the order in which they are to be tried. Read with
-- route; the reference keeps an upstream that is in use from being removed.
create table route_upstream (
	route_id bigint  not null references route (id) on delete cascade,
	rank     integer not null,
	upstream text    collate "C" not null references upstream (name),
	primary key (route_id, rank)
);
-- Removing an upstream asks which rules name it.
create index route_upstream_by_upstream on route_upstream (upstream);
