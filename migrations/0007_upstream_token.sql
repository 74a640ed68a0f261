-- Access tokens of upstream accounts. Written by the package relay/upstream/oauth.

-- The token of an account by its settings: a node that still has former settings uses
-- another row. Read and written by its key; read whole by 'postern check' and the metrics.
create table upstream_token (
	upstream      text        collate "C" not null references upstream (name) on delete cascade,
	credential    text        collate "C" not null,     -- of the account's settings, salted
	sealed        bytea,                                -- access and refresh token, bound to the key; null: none yet
	serial        bigint      not null default 0,       -- of the token: the lease that it was got under; 0: none yet
	refreshed_at  timestamptz,
	expires_at    timestamptz,
	failing_since timestamptz,
	last_error    text        not null default '',
	login         boolean     not null default false,   -- a person has to log in
	next_try_at   timestamptz,                          -- no node asks before
	holder        text        not null default '',      -- the node that asks the authority now, for people who look
	lease         bigint      not null default 0,       -- of the last taking: writes count only with it
	lease_until   timestamptz,
	primary key (upstream, credential),
	check ((sealed is null) = (serial = 0) and (sealed is null) = (expires_at is null) and (sealed is null) = (refreshed_at is null)),
	check ((failing_since is null) = (last_error = '')),
	check (isfinite(refreshed_at) and isfinite(expires_at) and isfinite(failing_since) and isfinite(next_try_at) and isfinite(lease_until))
);
