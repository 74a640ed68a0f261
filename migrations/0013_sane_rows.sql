-- Runs with: 0007
-- Rows that no program writes: sizes below 0, times that are infinite or in no calendar. One
-- of them stopped every claim of every node. docs/queue-states.md says what becomes of mail
-- whose rows are bad all the same ("set aside").

-- A time that programs can take: the epoch in place of one that they cannot.
create function sane_time(t timestamptz) returns timestamptz language sql immutable parallel safe as $$
	select case when t not between '0001-01-02 00:00+00' and '9998-12-31 00:00+00' then 'epoch' else t end
$$;

-- Why the row is held by the queue itself; null for all others. A release clears it.
alter table recipient add set_aside text;

-- What is there is mended first. A bad time becomes now: such mail
-- is due, and its lifetime begins anew. A size is what is stored. Of the messages only those
-- are looked at that wait: the others are history, and the table may be large.
update message set size = (select coalesce(sum(octet_length(chunk)), 0) from stored_body b where b.message_id = message.id)
where size < 0 and id in (select message_id from recipient);
update message set accepted_at = now() where accepted_at <> sane_time(accepted_at) and id in (select message_id from recipient);
update recipient set expires_at = now() + interval '5 days' where expires_at <> sane_time(expires_at);
update recipient set attempts = 0 where attempts < 0;

-- "not valid": from now on every new and changed row is checked, and nothing that is there is
-- read under the lock, which would stop mail while a large table is read. It stays so: what
-- was bad and waits was mended above, and history is not changed.
do $$
declare
	t record;
begin
	for t in
		select c.relname as name, string_agg(format('%1$I between ''0001-01-02 00:00+00'' and ''9998-12-31 00:00+00''', a.attname), ' and ' order by a.attnum) as sane,
			string_agg(format('%1$I = case when %1$I <> sane_time(%1$I) then now() else %1$I end', a.attname), ', ' order by a.attnum) as mended
		from pg_class c join pg_attribute a on a.attrelid = c.oid
		where c.relnamespace = current_schema()::regnamespace and a.atttypid = 'timestamptz'::regtype and not a.attisdropped
			and c.relname in ('node', 'message', 'recipient', 'large_turn', 'hold', 'notice', 'room', 'history_walk', 'live_session',
				'auth_failure', 'certificate_lock', 'certificate_state')
		group by c.relname order by c.relname
	loop
		if t.name <> 'message' then
			execute format('update %I set %s where not (%s)', t.name, t.mended, t.sane);
		end if;
		execute format('alter table %I add constraint %I check (%s) not valid', t.name, t.name || '_times', t.sane);
	end loop;
end
$$;
alter table message add constraint message_counts check (size >= 0 and recipients >= 0) not valid;
alter table recipient add constraint recipient_counts check (n >= 0 and attempts >= 0 and tell >= 0 and notify >= 0 and reply_code >= 0) not valid;
alter table body add constraint body_counts check (n >= 0) not valid;
alter table large_body add constraint large_body_counts check (n >= 0) not valid;
alter table auth_failure add constraint auth_failure_counts check (failures >= 0) not valid;
alter table activity add constraint activity_counts
	check (recipients >= 0 and first_time >= 0 and new_network >= 0 and delivered >= 0 and rejected >= 0) not valid;
