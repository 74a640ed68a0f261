-- Runs with: 0005
-- What is kept, and how its deletion finds it: docs/retention.md.

-- Where the deletion of old history is, for all nodes: whoever has the row's lock does
-- the next batch. One row for ever.
create table history_walk (
	one      boolean     primary key default true check (one),
	past     uuid        not null default '00000000-0000-0000-0000-000000000000', -- the last message that was looked at
	began_at timestamptz not null default clock_timestamp(),                      -- when it last began with the oldest
	next_at  timestamptz not null default clock_timestamp()                       -- when the next batch may be
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
insert into history_walk default values;

-- When the user wrote to the address last, to a month: an address that is old is new
-- again. Retention finds it by that.
alter table correspondent add seen_on date not null default current_date;
create index correspondent_seen on correspondent (seen_on);

-- Retention of the breaker's hours.
create index activity_hour on activity (hour);

-- Retention, and "audit --since".
create index audit_at on audit (at);

-- Retention of networks; last_at changes once a day.
create index known_network_last on known_network (last_at);

-- Whose mail it is, so that what an admin does to a user's mail does not read all other
-- mail. -1: accepted by a version that did not note it; the message tells then.
alter table recipient add user_id bigint not null default -1;
-- "queue hold --user" and the like; only what waits is in it, as in the other two.
create index recipient_user on recipient (user_id, message_id)
	where owner is null and held_at is null and state = 'queued';
-- "queue release --user", "queue list --state held", and whether a credential's hold still
-- holds something. Only holds write it.
create index recipient_held on recipient (user_id, message_id) where held_at is not null;

-- ClaimNotices, as before but without what is held: it is told of nothing, and who has
-- much of it held would have it read again and again.
drop index recipient_notice;
create index recipient_notice on recipient (notice_at)
	where notice_at is not null and owner is null and (state <> 'queued' or held_at is null);

-- Vacuum of the tables whose row counts are large (docs/postgres.md): a twentieth, not a
-- fifth, of millions of rows at once. History is written once and deleted weeks later,
-- so a page is frozen when it is first vacuumed and need not be read again for that.
alter table message set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000,
	autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 50000,
	autovacuum_analyze_scale_factor = 0.05, autovacuum_freeze_min_age = 0);
alter table attempt set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_threshold = 10000,
	autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_vacuum_insert_threshold = 50000,
	autovacuum_analyze_scale_factor = 0.05, autovacuum_freeze_min_age = 0);
alter table correspondent set (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
