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
	oauth           text        not null default '' check (oauth in ('', 'client-credentials', 'service-account', 'refresh-token')), -- then password is a grant
	secret_expires  date,                            -- the last day of the password, or of the grant's secret
	secret_told     integer,                         -- so many days ahead it was told last
	ca              text        not null default '', -- PEM; '': the system's authorities
	preset          text        not null default '', -- what the provider's replies mean; '': of none in particular
	max_connections integer     not null default 0 check (max_connections >= 0),
	max_messages    integer     not null default 0 check (max_messages >= 0),   -- over one connection
	max_recipients  integer     not null default 0 check (max_recipients >= 0), -- in one transaction
	senders         text        not null default '', -- patterns of what it may send as, with spaces between them; '': as everybody
	rewrite_sender  text        not null default '', -- the mailbox that sends instead; '': none
	idle_seconds    integer     not null default 0 check (idle_seconds >= 0),   -- of a connection that is kept
	tls_name        text        not null default '', -- of the certificate; '': host
	tls_pins        text        not null default '', -- keys of the certificate, 'sha256:…,sha256:…'
	mechanism       text        not null default '', -- of AUTH; '': what the server takes
	source          text        not null default '', -- our address, '192.0.2.1,2001:db8::1'
	ip              text        not null default '' check (ip in ('', '4', '6', 'both')),
	hello           text        not null default '', -- our name in EHLO
	dkim            text        not null default 'rsa' check (dkim in ('off', 'rsa', 'both')), -- the keys that sign its mail
	in_doubt        text        not null default '' check (in_doubt = '' or is_doubt_policy(in_doubt)), -- see doubt_policy; '': retry
	budget          text        not null default '', -- how much it may be given by all nodes, as relay/upstream/budget reads it
	paused_at       timestamptz,                     -- its mail waits since
	created_at      timestamptz not null default now(),
	check ((username = '') = (password is null)),
	-- One row that no program can read would keep all others from being read.
	check (isfinite(paused_at) and isfinite(created_at) and isfinite(secret_expires)),
	-- Credentials go only over verified TLS.
	check (username = '' or tls in ('require', 'implicit'))
);

-- The policy for a recipient in doubt (column recipient.doubt), for the queue: that of its user, else
-- that of its upstream. Where nobody can be told (recipient.tell) it is held for a person instead.
create function doubt_policy(user_id bigint, way text, tell integer) returns text language sql stable as $$
	select case when policy = 'notice' and $3 & 1 = 0 then 'hold' else policy end
	from (select coalesce((select nullif(u.in_doubt, '') from app_user u where u.id = $1),
		(select nullif(u.in_doubt, '') from upstream u where u.name = $2), 'retry') as policy) p
$$;

-- The meanings of an upstream's replies, as an admin has said: before the rows of its preset, in
-- the order (position, id). Read whole with upstream. The patterns are as relay/upstream
-- describes them.
create table upstream_reply (
	id         bigint      generated always as identity primary key,
	upstream   text        collate "C" not null references upstream (name) on delete cascade,
	position   integer     not null,
	stage      text        not null default '',
	code       text        not null,
	enhanced   text        not null default '',
	text       text        not null default '',
	result     text        not null check (result in ('later', 'never')),
	scope      text        not null check (scope in ('recipient', 'message', 'sender', 'account', 'connection', 'host')),
	wait       interval    not null default '0',
	created_at timestamptz not null default now(),
	check (isfinite(created_at) and isfinite(wait)),
	-- A fault of ours fails no mail.
	check (result = 'later' or scope in ('recipient', 'message'))
);
-- Removing an upstream removes its rows.
create index upstream_reply_upstream on upstream_reply (upstream);

-- One rule: null columns match everything. Read whole into the routing table in
-- the order (default route last, position, id); the first match wins. A change of
-- rules locks the table, and numbers all of them anew.
create table route (
	id               bigint      generated always as identity primary key,
	position         integer     not null,
	user_id          bigint      references app_user (id) on delete cascade,
	sender_domain    text        collate "C", -- as smtp.Address.DomainKey gives it; *.b: the domains below b
	recipient_domain text        collate "C", -- likewise
	created_at       timestamptz not null default now() check (isfinite(created_at))
);
-- Two rules with one match: the second could never be reached.
create unique index route_match on route
	(coalesce(user_id, 0), coalesce(sender_domain, ''), coalesce(recipient_domain, ''));
-- Removing a user removes its rules.
create index route_user on route (user_id);

-- The ways of a rule in the order in which they are to be tried. Read with route; the
-- reference keeps an upstream that is in use from being removed.
create table route_way (
	route_id bigint  not null references route (id) on delete cascade,
	rank     integer not null,
	upstream text    collate "C" references upstream (name), -- null: MX
	primary key (route_id, rank)
);
-- Removing an upstream asks which rules name it.
create index route_way_upstream on route_way (upstream);
