-- The breakers of upstreams. Written by the package relay/upstream/breaker.

-- One row for each upstream that ever opened; it stays when the breaker closes. Read whole by
-- every node each second; written by its key, when the state changes and around a probe.
create table upstream_breaker (
	upstream      text        collate "C" primary key references upstream (name) on delete cascade,
	opening       bigint      not null,                -- how often it has opened: a delivery closes the one that it knew
	opened_at     timestamptz,                         -- null: it is closed
	opened_by     text        not null,                -- the node; then the cause of the last opening or probe:
	stage         text        not null,
	scope         text        not null,
	reply         text        not null,
	sender        text        not null,                -- with whose MAIL a probe asks; '': none
	account       boolean     not null default false,  -- since it opened, mail was refused for the account
	past_probe    boolean     not null default false,  -- and where no probe comes: a message has to be taken
	failures      integer     not null,                -- probes that failed in a row
	next_probe_at timestamptz,                         -- no node probes before
	holder        text        not null default '',     -- the node that probes
	lease         bigint      not null default 0,      -- the number of the last lease: a probe's result counts only with it
	lease_until   timestamptz,
	closed_at     timestamptz,
	closed_by     text        not null default '',     -- the node
	by_probe      boolean     not null default false,  -- it was closed by a probe
	check ((opened_at is null) = (next_probe_at is null)),
	check (isfinite(opened_at) and isfinite(next_probe_at) and isfinite(closed_at) and isfinite(lease_until)),
	check (opened_at is not null or lease_until is null and closed_at is not null)
);

-- Has open breakers probed now, those of all upstreams if the name is '', and returns how many. A
-- probe that failed counts no more.
create function hurry_breaker(name text) returns bigint language sql as $$
	with hurried as (update upstream_breaker set next_probe_at = clock_timestamp(), failures = 0
		where opened_at is not null and (upstream = $1 or $1 = '') returning 1)
	select count(*) from hurried
$$;
