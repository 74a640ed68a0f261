-- The activity of users, and when it looks like a thief's. Written by the package
-- relay/anomaly; relay/retention deletes what is old.

-- The thresholds at which the signs of a stolen account trip; null turns a sign off. Always
-- one row.
create table anomaly (
	one                boolean primary key default true check (one),
	min_recipients     integer not null default 50 check (min_recipients > 0),
	first_time_share   double precision check (first_time_share > 0 and first_time_share <= 1),
	rejected_share     double precision check (rejected_share > 0 and rejected_share <= 1),
	new_network_factor double precision check (new_network_factor >= 1)
);
insert into anomaly default values;

-- The activity of users, by the hour; only while a sign is on.
create table activity (
	user_id     bigint      not null,
	hour        timestamptz not null,
	recipients  integer     not null default 0,
	first_time  integer     not null default 0, -- of them never written to before
	new_network integer     not null default 0, -- of them from a network not known
	delivered   integer     not null default 0,
	rejected    integer     not null default 0,
	primary key (user_id, hour),
	constraint activity_counts
		check (recipients >= 0 and first_time >= 0 and new_network >= 0 and delivered >= 0 and rejected >= 0)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Retention.
create index activity_hour on activity (hour);

-- The addresses that a user has written to, by a hash; as activity. They go with
-- the user. Primary key: each recipient is looked up.
create table correspondent (
	user_id   bigint not null,
	seen_on   date   not null default current_date, -- the last time, to a month: an address that is old is new again
	recipient bytea  not null,
	primary key (user_id, recipient)
) with (autovacuum_vacuum_scale_factor = 0.05, autovacuum_vacuum_insert_scale_factor = 0.05);
-- Retention.
create index correspondent_seen on correspondent (seen_on);
