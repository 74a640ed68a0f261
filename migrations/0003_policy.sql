-- Sessions of users whose sessions are limited. Written by the package policy. A row counts
-- while the node's epoch lives (table node), so those of a node that died go with it.
-- Primary key: the end of a session.
create table live_session (
	id            bigint      generated always as identity primary key,
	epoch         bigint      not null,
	user_id       bigint      not null,
	credential_id bigint      not null,
	opened_at     timestamptz not null default now(),
	-- Times that programs can take.
	constraint live_session_times check (opened_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00')
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
-- AUTH counts the sessions of a user.
create index live_session_user on live_session (user_id);
