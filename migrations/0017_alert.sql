-- Alerts by mail (docs/alerts.md). Written by the package relay/alert.

-- The findings of each node's last looks. Primary key: the node's next look.
create table alert_finding (
	since   timestamptz not null default now(),
	seen_at timestamptz not null default now(),
	node    text        not null,
	key     text        not null,               -- tells findings apart
	id      text        not null,               -- as 'postern check' has it, as the next columns
	status  text        not null check (status in ('failed', 'warning')),
	subject text        not null,
	text    text        not null,
	todo    text        not null,
	primary key (node, key),
	check (isfinite(since) and isfinite(seen_at))
);

-- Always one row: the last mail about it. The transaction that changes it enqueues the mail.
create table alert (
	one        boolean     primary key default true check (one),
	mailed_at  timestamptz,                     -- null: never
	message_id uuid,                            -- of that mail
	told       text[]      not null default '{}', -- the keys of the findings of which it told, if they are still there
	test_at    timestamptz,                     -- somebody wants a mail now
	test_id    uuid,                            -- the message that came of it
	check (isfinite(mailed_at) and isfinite(test_at))
);
insert into alert default values;
