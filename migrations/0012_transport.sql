-- Demands on the mail hosts of domains. Written by the package relay/transport.

-- The MTA-STS policies that are known (RFC 8461). Read and written by its key: one node of all gets
-- a policy, by a lease.
create table sts_policy (
	domain        text        collate "C" primary key, -- of recipients, as smtp.Address.DomainKey gives it
	id            text        not null default '',     -- of the TXT record at the time when the policy was got
	mode          text        check (mode in ('enforce', 'testing', 'none')), -- null: none was ever got
	mx            text[]      not null default '{}',
	fetched_at    timestamptz,
	expires_at    timestamptz,
	used_at       timestamptz not null default clock_timestamp(), -- to the day
	tried_id      text        not null default '',     -- of the TXT record at the last try
	failing_since timestamptz,
	last_error    text        not null default '',
	due_at        timestamptz not null default clock_timestamp(), -- no node tries before, unless the id changes
	holder        text        not null default '',     -- the node that gets it now, for people who look
	lease         bigint      not null default 0,      -- the number of the last lease: a result counts only with it
	lease_until   timestamptz,
	check ((mode is null) = (fetched_at is null) and (mode is null) = (expires_at is null)),
	check ((failing_since is null) = (last_error = '')),
	check (isfinite(fetched_at) and isfinite(expires_at) and isfinite(used_at) and isfinite(failing_since) and isfinite(due_at) and isfinite(lease_until))
);

-- Serves due: the policies that are to be renewed before they end.
create index sts_policy_due on sts_policy (due_at) where mode is not null;

-- The policies that admins set in place of what a domain publishes. Read by its key beside
-- sts_policy, and whole by 'postern transport show'.
create table transport_override (
	domain     text        collate "C" primary key,
	level      text        not null check (level in ('opportunistic', 'encrypted', 'verified')),
	reason     text        not null check (reason <> ''),
	set_by     text        not null,
	set_at     timestamptz not null default clock_timestamp(),
	expires_at timestamptz not null,
	check (isfinite(set_at) and isfinite(expires_at))
);
