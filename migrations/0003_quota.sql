-- Written by the package policy/quota, and by the queue's statements through charge_usage.

-- The charges against each limit with a window, in buckets of window/60: at are the buckets'
-- numbers, ascending, n their sums. scope is user (default limits too) or credential, and
-- subject its id; or scope is domain, and subject its name. kind is messages, recipients or
-- bytes. Primary key: charge_usage, which locks in its order.
create table usage_window (
	window_s  integer     not null,
	warned_at timestamptz,
	scope     text        collate "C" not null,
	subject   text        collate "C" not null,
	kind      text        collate "C" not null,
	at        bigint[]    not null default '{}',
	n         bigint[]    not null default '{}',
	primary key (scope, subject, kind, window_s)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- Sessions of users whose sessions are limited. A row counts while the node's
-- epoch lives (view live_epoch), so those of a node that died go with it.
-- Primary key: the end of a session.
create table live_session (
	id            bigint      generated always as identity primary key,
	epoch         bigint      not null,
	user_id       bigint      not null,
	credential_id bigint      not null,
	opened_at     timestamptz not null default now(),
	domain        text        collate "C" not null default '', -- of the user's name
	-- Times that programs can take.
	constraint live_session_times check (opened_at between '0001-01-02 00:00+00' and '9998-12-31 00:00+00')
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
-- AUTH counts the sessions of a user, and of a domain that has a limit.
create index live_session_user on live_session (user_id);
create index live_session_domain on live_session (domain);

-- Charges messages against their limits, one after the other, and says which are over.
--
-- rows: the limits' rows (scopes, subjects, kinds, windows) in the order of their key,
-- in which they are locked: the locks end with the transaction, so a charge is there
-- if its message is. Charges, by message: which message (msg), which row (row_of),
-- how much, and the limit. again: a message that is stored is not charged a second time. One
-- whose amounts are null is not charged at all.
--
-- A window is counted in buckets of a sixtieth. A charge counts until 62 buckets
-- later, so that a client that measures by the arrival of its replies does not see
-- more than the limit either.
--
-- Returns one row for each message: refused with the charge that refused it, its use
-- and when it would fit; or accepted with the use after it, for the message's row. And one for each limit
-- that has come to four fifths of it, with a null id.
create function charge_usage(ids uuid[], again boolean,
	scopes text[], subjects text[], kinds text[], windows integer[],
	msg integer[], row_of integer[], amounts bigint[], caps bigint[],
	out id uuid, out refused boolean, out charge integer, out used bigint, out retry_at timestamptz, out usage jsonb)
returns setof record language plpgsql as $$
declare
	-- of the rows
	totals  bigint[];
	added   bigint[] := array_fill(0::bigint, array[cardinality(scopes)]);
	buckets bigint[];
	cap_of  bigint[] := array_fill(0::bigint, array[cardinality(scopes)]);
	stored  uuid[] := '{}';
	clock   double precision;
	patience text; -- lock_timeout
	i       integer := 1;
	j       integer;
	k       integer;
begin
	if cardinality(msg) = 0 then
		return;
	end if;
	-- A transaction that has a limit's row for long must not keep the committer from others' mail.
	patience := current_setting('lock_timeout');
	perform set_config('lock_timeout', '1s', true);
	insert into usage_window (scope, subject, kind, window_s)
		select t.s, t.u, t.k, t.w from unnest(scopes, subjects, kinds, windows) t(s, u, k, w)
		where not exists (select from usage_window x where x.scope = t.s and x.subject = t.u and x.kind = t.k and x.window_s = t.w)
		on conflict do nothing;
	perform from (select from unnest(scopes, subjects, kinds, windows) with ordinality t(s, u, k, w, nth)
		join usage_window x on x.scope = t.s and x.subject = t.u and x.kind = t.k and x.window_s = t.w
		order by t.nth for update of x) locked;
	perform set_config('lock_timeout', patience, true);
	clock := extract(epoch from clock_timestamp());
	select array_agg(r.total order by r.nth), array_agg(r.bucket order by r.nth) into totals, buckets
	from (select t.nth, b.bucket, (select coalesce(sum(c.n), 0) from unnest(x.at, x.n) c(at, n) where c.at > b.bucket - 62) as total
		from unnest(scopes, subjects, kinds, windows) with ordinality t(s, u, k, w, nth)
		join usage_window x on x.scope = t.s and x.subject = t.u and x.kind = t.k and x.window_s = t.w
		cross join lateral (select greatest(floor(clock * 60 / t.w)::bigint, x.at[cardinality(x.at)]) as bucket) b) r;
	if cardinality(totals) is distinct from cardinality(scopes) then -- a row was forgotten in between
		raise exception 'usage_window lost a row' using errcode = 'serialization_failure';
	end if;
	if again then
		stored := array(select m.id from message m where m.id = any(ids));
	end if;
	while i <= cardinality(msg) loop
		id := ids[msg[i]]; refused := false; charge := null; used := null; retry_at := null; usage := null;
		j := i;
		while j <= cardinality(msg) and msg[j] = msg[i] loop
			k := row_of[j];
			if not refused and amounts[j] > caps[j] - totals[k] - added[k] then
				refused := true; charge := j; used := totals[k] + added[k];
			end if;
			j := j + 1;
		end loop;
		if id = any(stored) then
			refused := false;
		elsif refused then
			-- The oldest buckets that must go for the amount to fit.
			k := row_of[charge];
			select to_timestamp((a.at + 62) * windows[k] / 60.0) into retry_at
			from (select c.at, sum(c.n) over (order by c.at) as gone
				from (select u.at, u.n from usage_window x cross join lateral unnest(x.at, x.n) u(at, n)
						where x.scope = scopes[k] and x.subject = subjects[k] and x.kind = kinds[k] and x.window_s = windows[k]
							and u.at > buckets[k] - 62
					union all select buckets[k], added[k]) c) a
			where a.gone >= used + amounts[charge] - caps[charge] and amounts[charge] <= caps[charge]
			order by a.at limit 1;
		elsif amounts[i] is not null then
			for c in i .. j - 1 loop
				k := row_of[c];
				added[k] := added[k] + amounts[c];
				cap_of[k] := caps[c];
				usage := coalesce(usage, '[]') || (
					jsonb_build_object('kind', kinds[k], 'used', totals[k] + added[k], 'max', caps[c], 'window_s', windows[k])
					|| case scopes[k] when 'user' then '{}' else jsonb_build_object('scope', scopes[k], 'subject', subjects[k]) end);
			end loop;
		end if;
		return next;
		i := j;
	end loop;
	update usage_window x set (at, n) = (
		select array_agg(c.at order by c.at), array_agg(c.n order by c.at)
		from (select u.at, sum(u.n)::bigint as n
			from (select o.at, o.n from unnest(x.at, x.n) o(at, n) where o.at > t.bucket - 62 union all select t.bucket, t.plus) u
			group by u.at) c)
	from unnest(scopes, subjects, kinds, windows, buckets, added) t(s, u, k, w, bucket, plus)
	where x.scope = t.s and x.subject = t.u and x.kind = t.k and x.window_s = t.w and t.plus > 0;
	for k in 1 .. cardinality(scopes) loop
		if added[k] > 0 and totals[k]::numeric * 5 < cap_of[k]::numeric * 4 and (totals[k] + added[k])::numeric * 5 >= cap_of[k]::numeric * 4 then
			update usage_window x set warned_at = clock_timestamp()
			where x.scope = scopes[k] and x.subject = subjects[k] and x.kind = kinds[k] and x.window_s = windows[k]
				and (x.warned_at is null or x.warned_at < clock_timestamp() - make_interval(secs => windows[k]));
			if found then
				insert into event (kind, object, user_id, detail) select 'limit.near', kinds[k],
					case scopes[k] when 'user' then subjects[k]::bigint when 'credential' then (select c.user_id from credential c where c.id = subjects[k]::bigint) end,
					jsonb_build_object('scope', scopes[k], 'subject', subjects[k], 'window_s', windows[k], 'used', totals[k] + added[k], 'max', cap_of[k]);
				id := null; refused := false; charge := k; used := totals[k] + added[k]; retry_at := null; usage := null;
				return next;
			end if;
		end if;
	end loop;
end
$$;
