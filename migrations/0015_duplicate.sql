-- Mail that is submitted twice: docs/duplicates.md. Written by the package relay/queue: the keys
-- of most mail by the statement enqueue_keyed, what else by the function admit.

-- One row for each recipient of a stored message that a second copy is told from: by its key, a hash
-- of the user, the content and the recipient, and until a time. The row with n -1 is of a key of
-- the client's own and says what content it stands for. That the message ended undelivered is not
-- written here: its history says so.
-- Primary key: each accepted message puts its rows here, and so finds those that are.
create table duplicate (
	key        uuid        primary key,
	message_id uuid        not null,
	until      timestamptz not null,
	content    uuid,
	n          integer     not null, -- of table recipient
	constraint duplicate_times check (until between '0001-01-02 00:00+00' and '9998-12-31 00:00+00')
) with (autovacuum_vacuum_scale_factor = 0.1, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_insert_threshold = -1,
	autovacuum_vacuum_cost_delay = 0, autovacuum_analyze_threshold = 50000);

-- Whether a recipient of a message, or with -1 all of them, ended without a delivery: then a second
-- copy is wanted.
create function undelivered(message_id uuid, n integer) returns boolean language sql stable as $$
	select not exists (select from recipient r where r.message_id = $1 and (r.n = $2 or $2 = -1) and r.state <> 'failed')
		and exists (select from history h where h.message_id = $1 and (h.n = $2 or $2 = -1) and not h.fenced
			and h.result in ('failed', 'suppressed', 'expired', 'cancel', 'void'))
		and not exists (select from history h where h.message_id = $1 and (h.n = $2 or $2 = -1) and h.result in ('delivered', 'resolve'))
$$;

-- Decides which messages of a group are stored, and with which recipients: those that are not
-- duplicates, and not over a limit (charge_usage).
--
-- Keys, in any order and each once: of which message (key_msg) and recipient (key_n), for how many seconds,
-- and what content a client's own key stands for (zero: it is not one). They are locked in their
-- order, before the limits' rows. A key that another transaction is putting in is waited for, but
-- not long: others' mail waits too. It is a duplicate if that commits. again: the recipients of a message that is stored are those that
-- are in the table.
--
-- A duplicate is written to the history of the first message: this is what keeps that from being
-- voided (relay/queue/void.go). A client that sends the same in a loop fills no table.
--
-- Returns what charge_usage returns, and one row for each recipient that is a duplicate, of a
-- message that is refused if all are; n is -1 where a client's own key stands for other content.
create function admit(ids uuid[], again boolean, epoch bigint, node text, at timestamptz[],
	keys uuid[], key_msg integer[], key_n integer[], spans integer[], contents uuid[],
	scopes text[], subjects text[], kinds text[], windows integer[],
	msg integer[], row_of integer[], amounts bigint[], caps bigint[],
	out id uuid, out refused boolean, out charge integer, out used bigint, out retry_at timestamptz, out usage jsonb,
	out n integer, out first uuid)
returns setof record language plpgsql set lock_timeout = '1s' as $$
declare
	none     constant uuid := '00000000-0000-0000-0000-000000000000';
	stored   uuid[] := '{}';    -- by an earlier try
	active   integer;           -- keys of the others
	fresh    boolean;           -- all of these are new
	seen     integer;
	whole    integer[] := '{}'; -- messages that are not stored, as duplicates or for their key
	over     uuid[] := '{}';    -- and those over a limit
	-- of duplicates
	dup_msg  integer[] := '{}';
	dup_n    integer[] := '{}';
	dup_of   uuid[] := '{}';
	dup_of_n integer[] := '{}';
	other    record;
begin
	if cardinality(keys) > 0 then
		active := cardinality(keys);
		if again then
			stored := array(select m.id from message m where m.id = any(ids));
			select count(*) into active from unnest(key_msg) k(msg) where ids[k.msg] <> all(stored);
		end if;
		-- Nearly always all keys are new. An insert that may meet a conflict costs half as much again.
		begin
			insert into duplicate (key, message_id, until, content, n)
				select k.key, ids[k.msg], clock_timestamp() + make_interval(secs => k.span), nullif(k.content, none), k.n
				from unnest(keys, key_msg, key_n, spans, contents) k(key, msg, n, span, content)
				where ids[k.msg] <> all(stored)
				order by k.key;
			fresh := true;
		exception when unique_violation then
			fresh := false;
		end;
		while not fresh loop
			insert into duplicate (key, message_id, until, content, n)
				select k.key, ids[k.msg], clock_timestamp() + make_interval(secs => k.span), nullif(k.content, none), k.n
				from unnest(keys, key_msg, key_n, spans, contents) k(key, msg, n, span, content)
				where ids[k.msg] <> all(stored)
				order by k.key
				on conflict do nothing;
			get diagnostics seen = row_count;
			exit when seen = active;
			seen := 0; whole := '{}'; dup_msg := '{}'; dup_n := '{}'; dup_of := '{}'; dup_of_n := '{}';
			for other in
				select k.key, k.msg, k.n, k.span, nullif(k.content, none) as content, d.message_id as of, d.n as of_n, d.until, d.content as of_content
				from unnest(keys, key_msg, key_n, spans, contents) k(key, msg, n, span, content)
					join duplicate d on d.key = k.key
				where ids[k.msg] <> all(stored)
				order by k.key for update of d
			loop
				seen := seen + 1;
				if other.of = ids[other.msg] then
					null;
				elsif other.until <= clock_timestamp() or undelivered(other.of, other.of_n) then
					update duplicate d set message_id = ids[other.msg], until = clock_timestamp() + make_interval(secs => other.span), content = other.content, n = other.n
					where d.key = other.key;
				elsif other.n >= 0 or other.content is distinct from other.of_content then
					if other.n < 0 then
						whole := whole || other.msg;
					end if;
					dup_msg := dup_msg || other.msg; dup_n := dup_n || other.n; dup_of := dup_of || other.of; dup_of_n := dup_of_n || other.of_n;
				end if;
			end loop;
			exit when seen = active; -- else a row was deleted meanwhile
		end loop;
		if again then
			for other in
				select k.msg, k.n, coalesce((select d.message_id from duplicate d where d.key = k.key), ids[k.msg]) as of
				from unnest(keys, key_msg, key_n) k(key, msg, n)
				where ids[k.msg] = any(stored) and k.n >= 0 and not exists (select from recipient r where r.message_id = ids[k.msg] and r.n = k.n)
			loop
				dup_msg := dup_msg || other.msg; dup_n := dup_n || other.n; dup_of := dup_of || other.of; dup_of_n := dup_of_n || null::integer;
			end loop;
		end if;
		if cardinality(dup_msg) > 0 then
			whole := whole || array(select k.msg from unnest(key_msg, key_n) k(msg, n) where k.n >= 0 and ids[k.msg] <> all(stored) group by k.msg
				having count(*) = (select count(*) from unnest(dup_msg, dup_n) d(msg, n) where d.msg = k.msg and d.n >= 0));
			amounts := array(select case when c.msg = any(whole) then null
					when kinds[c.of] = 'recipients' then c.amount - (select count(*) from unnest(dup_msg) d(msg) where d.msg = c.msg)
					else c.amount end
				from unnest(msg, row_of, amounts) with ordinality c(msg, of, amount, nth) order by c.nth);
		end if;
	end if;
	if cardinality(msg) > 0 then
		for id, refused, charge, used, retry_at, usage in
			select v.id, v.refused, v.charge, v.used, v.retry_at, v.usage from charge_usage(ids, again, scopes, subjects, kinds, windows, msg, row_of, amounts, caps) v
		loop
			if refused then
				over := over || id;
			end if;
			return next;
		end loop;
	end if;
	if cardinality(whole) > 0 or cardinality(over) > 0 and cardinality(keys) > 0 then
		delete from duplicate d using unnest(keys, key_msg) k(key, msg)
		where d.key = k.key and d.message_id = ids[k.msg] and (k.msg = any(whole) or ids[k.msg] = any(over));
	end if;
	if cardinality(dup_msg) > 0 then
		-- One that was refused with 451 and voided meanwhile promises nothing.
		insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text)
			select d.of, d.of_n, at[d.msg], epoch, 'duplicate', coalesce(r.local, h.local, ''), coalesce(r.domain, h.domain, ''), node,
				'submitted again as ' || ids[d.msg]
			from unnest(dup_msg, dup_n, dup_of, dup_of_n) d(msg, n, of, of_n)
				left join recipient r on r.message_id = d.of and r.n = d.of_n
				left join lateral (select x.local, x.domain from history x where x.message_id = d.of and x.n = d.of_n limit 1) h on true
			where d.n >= 0 and d.of_n is not null and ids[d.msg] <> all(over)
				and not exists (select from unnest(dup_msg, dup_n) c(msg, n) where c.msg = d.msg and c.n < 0)
				and (again or not exists (select from message m where m.id = ids[d.msg]))
				and (select count(*) from history x where x.message_id = d.of and x.n = d.of_n and x.result = 'duplicate') < 20
			on conflict do nothing;
		charge := null; used := null; retry_at := null; usage := null;
		for id, refused, n, first in
			select ids[d.msg], d.msg = any(whole), d.n, d.of from unnest(dup_msg, dup_n, dup_of) d(msg, n, of) order by d.msg, d.n
		loop
			return next;
		end loop;
	end if;
end
$$;
