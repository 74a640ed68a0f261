-- Budgets of upstreams. Written by the package relay/upstream/budget (docs/decisions/budgets.md).

-- Units of a limit, which count from their lease until the window has passed after the end of their
-- bucket, by the database's clock. kind is messages, recipients, sessions or waiting. A bucket is
-- a part of time (budget_clock); of sessions, and of what began to wait (window_s 0), it is the
-- epoch of the node, or of a command minus the microsecond until which it counts.
-- Primary key: lease_budget.
create table upstream_budget (
	upstream text    collate "C" not null references upstream (name) on delete cascade,
	kind     text    collate "C" not null check (kind in ('messages', 'recipients', 'sessions', 'waiting')),
	window_s integer not null,
	zone     text    collate "C" not null, -- days begin at midnight there; '': the window rolls
	bucket   bigint  not null,
	n        bigint  not null,
	primary key (upstream, kind, window_s, zone, bucket)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The seconds of a bucket, the bucket of a moment, which is in seconds of the epoch, and the first
-- that counts then. A day in a zone is one bucket.
create function budget_clock(clock double precision, window_s integer, zone text, out width double precision, out bucket bigint, out since bigint)
language sql stable as $$
	select case zone when '' then w else 86400 end, b, case zone when '' then floor((clock - window_s) / w)::bigint else b end
	from (select greatest(window_s / 60.0, 0.1)::double precision as w) x cross join lateral
		(select case zone when '' then floor(clock / w)::bigint else (to_timestamp(clock) at time zone zone)::date - date '1970-01-01' end as b) y
$$;

-- The recipient.waits_for of mail that waits for a budget: for its turn, or for a session.
create function budget_ways(upstream text) returns text[] language sql immutable as $$
	select array['budget ' || $1, 'sessions ' || $1]
$$;

-- Moves the units of a node's lease into a new one: of those in the bucket froms (back), spent
-- were used, keep are in use, the rest is free again. need is what its first message takes, wants
-- what it would like. Of sessions and of what waits, keep is all that it has.
--
-- Returns for each limit of an upstream which still has that setting: what was given, and the new
-- lease's bucket and seconds; what is left for all; what began to wait at other nodes, and when
-- the last has its turn; and when units are free again. Times are seconds of the epoch.
create function lease_budget(me bigint, upstreams text[], settings text[], kinds text[], windows integer[], zones text[], mosts bigint[],
	froms bigint[], back bigint[], spent bigint[], keep bigint[], need bigint[], wants bigint[],
	out nth integer, out given bigint, out bucket bigint, out lease double precision, out remains bigint, out others bigint,
	out last double precision, out clock double precision, out free_at double precision[], out free_n bigint[])
returns setof record language plpgsql as $$
#variable_conflict use_column
declare
	c        record;
	ready    boolean;
	used     bigint;
	waiting  bigint;
	midnight double precision;
begin
	perform set_config('lock_timeout', '1s', true);
	perform from upstream u where u.name = any(upstreams) order by u.name for no key update;
	delete from upstream_budget b where b.upstream = any(upstreams) and b.window_s = 0
		and case when b.bucket < 0 then -b.bucket < extract(epoch from clock_timestamp()) * 1000000
			else b.bucket not in (select e.epoch from live_epoch e) end;
	for i in 1 .. cardinality(upstreams) loop
		-- Each statement sees what was committed before it, so these see it under the lock.
		continue when not exists (select from upstream u where u.name = upstreams[i] and u.budget = settings[i]);
		nth := i;
		clock := extract(epoch from clock_timestamp());
		select extract(epoch from sane_time(max(r.next_attempt_at))) into last from recipient r
			where r.waits_for is not null and r.waits_for = (budget_ways(upstreams[i]))[1] and r.owner is null and r.held_at is null;
		select coalesce(sum(b.n), 0), count(*) into others, waiting from upstream_budget b
			where b.upstream = upstreams[i] and b.kind = 'waiting' and b.bucket <> me;
		others := least(others, waiting * greatest(keep[i], 1)); -- no less than an equal share is this node's
		c := budget_clock(clock, windows[i], zones[i]);
		bucket := c.bucket;
		free_at := '{}'; free_n := '{}';
		if windows[i] = 0 then
			bucket := me; c.since := null; lease := 0;
			ready := me < 0 or exists (select from live_epoch e where e.epoch = me);
			delete from upstream_budget b where b.upstream = upstreams[i] and b.kind = kinds[i] and b.window_s = 0 and b.bucket = me;
		elsif zones[i] = '' then
			lease := least(greatest(windows[i] / 10.0, 0.5), 60);
			bucket := floor((clock + lease) / c.width);
			ready := true;
		else -- around midnight it is not known which day a server counts
			midnight := extract(epoch from (date '1970-01-01' + c.bucket::integer)::timestamp at time zone zones[i]);
			ready := clock >= midnight + 5;
			if ready then
				midnight := extract(epoch from (date '1970-01-01' + c.bucket::integer + 1)::timestamp at time zone zones[i]);
			end if;
			lease := least(60, greatest(midnight - 5 - clock, 0));
			ready := ready and lease > 0;
			free_at := array[midnight + 5]; free_n := array[mosts[i]];
		end if;
		delete from upstream_budget b
			where b.upstream = upstreams[i] and b.kind = kinds[i] and b.window_s = windows[i] and b.zone = zones[i] and b.bucket < c.since;
		update upstream_budget b set n = b.n - back[i]
			where b.upstream = upstreams[i] and b.kind = kinds[i] and b.window_s = windows[i] and b.zone = zones[i] and b.bucket = froms[i];
		select coalesce(sum(b.n), 0) + spent[i] + keep[i] into used from upstream_budget b
			where b.upstream = upstreams[i] and b.kind = kinds[i] and b.window_s = windows[i] and b.zone = zones[i];
		remains := greatest(mosts[i] - used, 0);
		given := greatest(need[i], least(wants[i], greatest(remains / 10, 1)));
		if windows[i] = 0 then -- a node that others wait beside gets no more than its share
			given := greatest(least(wants[i], remains, (mosts[i] + waiting) / (waiting + 1) - keep[i]), 0);
		end if;
		if not ready then
			remains := 0;
		end if;
		if given > remains then
			given := 0;
		end if;
		remains := remains - given;
		insert into upstream_budget as b (upstream, kind, window_s, zone, bucket, n)
			select upstreams[i], kinds[i], windows[i], zones[i], t.b, sum(t.n)
			from (values (c.bucket, spent[i]), (lease_budget.bucket, keep[i] + given)) t(b, n) where t.n > 0 group by t.b
			on conflict on constraint upstream_budget_pkey do update set n = b.n + excluded.n;
		if windows[i] > 0 and zones[i] = '' then
			-- By then the leased units are in the bucket of their use.
			select coalesce(array_agg((least(b.bucket, c.bucket) + 1) * c.width + windows[i] order by b.bucket), '{}'), coalesce(array_agg(b.n order by b.bucket), '{}')
				into free_at, free_n from upstream_budget b
				where b.upstream = upstreams[i] and b.kind = kinds[i] and b.window_s = windows[i] and b.zone = zones[i] and b.n > 0;
		end if;
		return next;
	end loop;
end
$$;
