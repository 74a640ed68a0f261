-- The octets of large messages, over 1 MiB: as in body, but in four tables that are
-- used in turn. Nothing is deleted in them: a table in which nothing is waited for is
-- truncated as a whole, which needs neither the deletion of a thousand rows for each
-- message nor the vacuum after it. What is waited for long moves to body. See
-- relay/queue/turns.go and docs/decisions/queue-bodies.md.
-- Storage is set before the partitions are made: without a column that could be
-- TOASTed they have no TOAST table, one file less to truncate.
create table large_body (
	message_id uuid     not null,
	n          integer  not null,
	turn       smallint not null,
	chunk      bytea    not null
) partition by list (turn);
alter table large_body alter column chunk set storage plain;
-- Reading one message's rows in order, and stepping from message to message.
create index large_body_message on large_body (message_id, n);
create table large_body_0 partition of large_body for values in (0) with (autovacuum_enabled = false);
create table large_body_1 partition of large_body for values in (1) with (autovacuum_enabled = false);
create table large_body_2 partition of large_body for values in (2) with (autovacuum_enabled = false);
create table large_body_3 partition of large_body for values in (3) with (autovacuum_enabled = false);

-- Which of the tables is written to now. Four rows for ever, read whole.
create table large_turn (
	turn       smallint    primary key,
	writing    boolean     not null,
	changed_at timestamptz not null default clock_timestamp()
) with (fillfactor = 50);
create unique index large_turn_writing on large_turn (writing) where writing;
insert into large_turn (turn, writing) values (0, true), (1, false), (2, false), (3, false);

-- Every stored octet, wherever it is.
create view stored_body as
	select message_id, n, chunk from body
	union all
	select message_id, n, chunk from large_body;
