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
	chunk      bytea    not null,
	-- Reading one message's rows in order, and stepping from message to message.
	primary key (message_id, n, turn)
) partition by list (turn);
alter table large_body alter column chunk set storage plain;
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

-- Truncates one of the tables if no message in it has a recipient, and says whether
-- it did. One call is one round trip: a node that is stopped right here keeps nobody
-- waiting. The table is named, for by way of large_body the others would be locked too.
create function clear_large_body(turn smallint) returns boolean language plpgsql as $$
declare
	name  text := 'large_body_' || turn;
	waits boolean;
begin
	execute format('lock table %I in access exclusive mode nowait', name);
	execute format('
		with recursive w(message_id) as (
			(select message_id from %1$I order by message_id limit 1)
			union all
			select (select b.message_id from %1$I b where b.message_id > w.message_id order by b.message_id limit 1)
			from w where w.message_id is not null)
		select exists (select from w where exists (select from recipient r where r.message_id = w.message_id))', name) into waits;
	if not waits then
		execute format('truncate %I', name);
	end if;
	return not waits;
exception when lock_not_available then -- somebody reads or writes there
	return false;
end
$$;

-- Every stored octet, wherever it is.
create view stored_body as
	select message_id, n, chunk from body
	union all
	select message_id, n, chunk from large_body;
