-- Budgets of upstreams. Written by the package relay/upstream/budget.

-- The spent part of each limit, in buckets: at are their numbers, ascending, n their sums
-- (budget_clock). kind is messages, recipients or sessions; window_s is 0 for sessions.
-- Primary key: lease_budget, which locks in its order.
create table upstream_budget (
	upstream   text        collate "C" not null references upstream (name) on delete cascade,
	kind       text        collate "C" not null check (kind in ('messages', 'recipients', 'sessions')),
	window_s   integer     not null,
	zone       text        collate "C" not null default '', -- days begin at midnight there; '': the window rolls
	waits_from timestamptz,                                 -- mail waits for it since; null: none
	at         bigint[]    not null default '{}',
	n          bigint[]    not null default '{}',
	primary key (upstream, kind, window_s, zone)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- A node's part of a limit, by its epoch: what it has not reported as spent, or its sessions. docs/decisions/budgets.md has the states. Read and written by its key.
create table upstream_portion (
	upstream text        collate "C" not null,
	kind     text        collate "C" not null,
	window_s integer     not null,
	zone     text        collate "C" not null,
	epoch    bigint      not null,
	n        bigint      not null check (n >= 0),
	serial   bigint      not null,               -- of the lease: a node that missed one spends nothing of it
	until    timestamptz not null,               -- then all of it counts as spent; of sessions only waits ends
	waits    boolean     not null,               -- mail waits at the node
	primary key (upstream, kind, window_s, zone, epoch),
	foreign key (upstream, kind, window_s, zone) references upstream_budget on delete cascade
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The bucket of a moment, in seconds of the epoch; how many buckets count; and how many seconds a
-- bucket has. A day in a zone is one bucket.
create function budget_clock(clock double precision, window_s integer, zone text,
	out bucket bigint, out counts integer, out width double precision)
language sql stable as $$
	select case zone when '' then floor(clock / w)::bigint else ((to_timestamp(clock) at time zone zone)::date - date '1970-01-01')::bigint end,
		case zone when '' then ceil(window_s / w)::integer + 2 else 1 end,
		case zone when '' then w else 86400 end
	from (select greatest(window_s / 60.0, 0.25)::double precision as w) b
$$;

-- Leases portions to a node, for limits in the order of their key, and takes its reports: spent
-- is in the portion with that serial, back was not used, need is what its first message takes,
-- wants what it would like. Of sessions spent is what it keeps. A limit that is no longer in the
-- upstream's setting gets no row.
--
-- Returns the node's portion as it is now, whether its former one was lost to it, how long the
-- lease is, what is left for all, how many nodes have mail that waits, and when units come
-- back: the times are seconds of the epoch.
create function lease_budget(me bigint, upstreams text[], settings text[], kinds text[], windows integer[], zones text[],
	mosts bigint[], spent bigint[], back bigint[], need bigint[], wants bigint[], waits boolean[], serials bigint[],
	out nth integer, out portion bigint, out serial bigint, out fresh boolean, out lease double precision, out remains bigint,
	out waiting integer, out clock double precision, out free_at double precision[], out free_n bigint[])
returns setof record language plpgsql as $$
declare
	b        record;
	had      bigint;
	others   bigint;
	total    bigint;
	given    bigint;
	midnight double precision;
	ends     double precision;
begin
	perform set_config('lock_timeout', '1s', true);
	insert into upstream_budget (upstream, kind, window_s, zone)
		select t.u, t.k, t.w, t.z from unnest(upstreams, settings, kinds, windows, zones) t(u, s, k, w, z)
			join upstream u on u.name = t.u and u.budget = t.s
		where not exists (select from upstream_budget x where x.upstream = t.u and x.kind = t.k and x.window_s = t.w and x.zone = t.z)
		on conflict do nothing;
	perform from (select from unnest(upstreams, kinds, windows, zones) with ordinality t(u, k, w, z, nth)
		join upstream_budget x on x.upstream = t.u and x.kind = t.k and x.window_s = t.w and x.zone = t.z
		order by t.nth for update of x) locked;
	for i in 1 .. cardinality(upstreams) loop
		-- Under the lock, since each statement sees what was committed before it.
		perform from upstream u where u.name = upstreams[i] and u.budget = settings[i];
		continue when not found;
		nth := i;
		clock := extract(epoch from clock_timestamp());
		free_at := '{}'; free_n := '{}';
		if kinds[i] = 'sessions' then
			delete from upstream_portion p where p.upstream = upstreams[i] and p.kind = kinds[i] and p.epoch <> me
				and (not exists (select from live_epoch e where e.epoch = p.epoch) or p.n = 0 and p.until < to_timestamp(clock));
			select coalesce(sum(p.n), 0), count(*) into others, waiting from upstream_portion p
				where p.upstream = upstreams[i] and p.kind = kinds[i] and p.epoch <> me;
			-- A node that others wait beside gets no more than its share.
			given := greatest(least(wants[i], mosts[i] - others - spent[i], (mosts[i] + waiting) / (waiting + 1) - spent[i]), 0);
			if not exists (select from live_epoch e where e.epoch = me) then
				given := 0;
			end if;
			portion := spent[i] + given;
			remains := greatest(mosts[i] - others - portion, 0);
			serial := 0; fresh := false; lease := 10; ends := clock + 10;
		else
			select * into b from budget_clock(clock, windows[i], zones[i]);
			if zones[i] = '' then
				select greatest(b.bucket, x.at[cardinality(x.at)]) into b.bucket from upstream_budget x
					where x.upstream = upstreams[i] and x.kind = kinds[i] and x.window_s = windows[i] and x.zone = zones[i];
				midnight := null;
			else
				midnight := extract(epoch from (date '1970-01-01' + b.bucket::integer + 1)::timestamp at time zone zones[i]);
			end if;
			lease := least(greatest(windows[i] / 10.0, 0.5), 60);
			-- Leases that have ended, and what this node reports. The portion of a serial that it does not
			-- know was lost to it: all of it counts.
			with ended as (
				delete from upstream_portion p where p.upstream = upstreams[i] and p.kind = kinds[i] and p.window_s = windows[i] and p.zone = zones[i]
					and (p.until <= to_timestamp(clock) or p.epoch = me and p.serial <> serials[i])
				returning p.n, least(p.until, to_timestamp(clock)) as at),
			reported as (
				update upstream_portion p set n = greatest(p.n - spent[i] - back[i], 0)
				where p.upstream = upstreams[i] and p.kind = kinds[i] and p.window_s = windows[i] and p.zone = zones[i]
					and p.epoch = me and p.serial = serials[i] and p.until > to_timestamp(clock)
				returning p.n),
			counted as (
				select c.bucket as at, e.n from ended e cross join lateral budget_clock(extract(epoch from e.at)::double precision, windows[i], zones[i]) c where e.n > 0
				union all select b.bucket, spent[i] from reported where spent[i] > 0)
			update upstream_budget x set (at, n) = (
				select coalesce(array_agg(s.at order by s.at), '{}'), coalesce(array_agg(s.n order by s.at), '{}')
				from (select u.at, sum(u.n)::bigint as n
					from (select o.at, o.n from unnest(x.at, x.n) o(at, n) union all select c.at, c.n from counted c) u
					where u.at > b.bucket - b.counts group by u.at) s)
			where x.upstream = upstreams[i] and x.kind = kinds[i] and x.window_s = windows[i] and x.zone = zones[i]
				and (exists (select from counted) or x.at[1] <= b.bucket - b.counts);
			select p.n into had from upstream_portion p
				where p.upstream = upstreams[i] and p.kind = kinds[i] and p.window_s = windows[i] and p.zone = zones[i] and p.epoch = me;
			fresh := had is null;
			had := coalesce(had, 0);
			select coalesce(sum(u.n), 0) into total from upstream_budget x cross join lateral unnest(x.at, x.n) u(at, n)
				where x.upstream = upstreams[i] and x.kind = kinds[i] and x.window_s = windows[i] and x.zone = zones[i] and u.at > b.bucket - b.counts;
			select coalesce(sum(p.n), 0), count(*) filter (where p.waits) into others, waiting from upstream_portion p
				where p.upstream = upstreams[i] and p.kind = kinds[i] and p.window_s = windows[i] and p.zone = zones[i] and p.epoch <> me;
			remains := greatest(mosts[i] - total - others - had, 0);
			given := greatest(need[i], least(wants[i], greatest(remains / 10, 1)));
			-- Around midnight it is not known which day a server counts.
			if given > remains or midnight - clock < 5 or (to_timestamp(clock - 5) at time zone nullif(zones[i], ''))::date < (to_timestamp(clock) at time zone nullif(zones[i], ''))::date then
				given := 0;
			end if;
			portion := had + given;
			remains := remains - given;
			serial := serials[i] + 1;
			ends := least(clock + lease, midnight - 5);
			lease := ends - clock;
			if midnight is not null then
				free_at := array[midnight + 5]; free_n := array[mosts[i]];
			else
				select array_agg(f.at order by f.at), array_agg(f.n order by f.at) into free_at, free_n
				from (select t.at, sum(t.n)::bigint as n from (
					select (u.at + b.counts) * b.width as at, u.n from upstream_budget x cross join lateral unnest(x.at, x.n) u(at, n)
						where x.upstream = upstreams[i] and x.kind = kinds[i] and x.window_s = windows[i] and x.zone = zones[i]
					union all
					select (ceil(extract(epoch from p.until)::double precision / b.width) + b.counts) * b.width, p.n from upstream_portion p
						where p.upstream = upstreams[i] and p.kind = kinds[i] and p.window_s = windows[i] and p.zone = zones[i] and p.epoch <> me and p.n > 0) t
					group by t.at) f;
			end if;
		end if;
		if portion > 0 or waits[i] then
			insert into upstream_portion as p (upstream, kind, window_s, zone, epoch, n, serial, until, waits)
			values (upstreams[i], kinds[i], windows[i], zones[i], me, portion, lease_budget.serial, to_timestamp(greatest(ends, clock)), lease_budget.waits[i])
			on conflict on constraint upstream_portion_pkey do update set n = excluded.n, serial = excluded.serial, until = excluded.until, waits = excluded.waits;
		else
			delete from upstream_portion p where p.upstream = upstreams[i] and p.kind = kinds[i] and p.window_s = windows[i] and p.zone = zones[i] and p.epoch = me;
		end if;
		update upstream_budget x set waits_from = case when waits[i] or waiting > 0 and kinds[i] <> 'sessions' then coalesce(x.waits_from, clock_timestamp()) end
			where x.upstream = upstreams[i] and x.kind = kinds[i] and x.window_s = windows[i] and x.zone = zones[i]
				and (x.waits_from is null) = (waits[i] or waiting > 0 and kinds[i] <> 'sessions');
		return next;
	end loop;
end
$$;
