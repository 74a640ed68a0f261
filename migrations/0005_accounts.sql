-- Credentials, limits, holds, the breaker and the audit: docs/accounts.md.

-- Owned by the package auth ----------------------------------------------------

-- The watch asks every second who changed lately.
create index app_user_changed on app_user (updated_at);

-- The pattern <> is an address too.
alter table sender_pattern drop constraint sender_pattern_length,
    add constraint sender_pattern_length check (pattern = '<>' or octet_length(pattern) between 3 and 320);

-- A default that changed concerns all users, and a user who was removed has no row to
-- be found by. One row for ever.
create table auth_state (
    one                 boolean primary key default true check (one),
    defaults_changed_at timestamptz not null default now()
);
insert into auth_state default values;

-- What may be sent, as set: by rows without a user for all users, by rows with a
-- user, and with a credential for what comes by it. window_s is 0 for limits that are
-- of one message or one moment. A user with no_defaults is free of the first kind.
create table limit_rule (
    id            bigint generated always as identity primary key,
    user_id       bigint references app_user (id) on delete cascade,
    credential_id bigint references credential (id) on delete cascade,
    kind          text not null,
    window_s      integer not null default 0,
    max           bigint not null,
    constraint limit_rule_kind check (kind in ('messages', 'recipients', 'bytes', 'size', 'recipients_per_message', 'sessions')),
    constraint limit_rule_window check (case when kind in ('messages', 'recipients', 'bytes') then window_s between 1 and 31622400 else window_s = 0 end),
    constraint limit_rule_max check (max >= 0),
    constraint limit_rule_user check (credential_id is null or user_id is not null)
);
-- AUTH reads the rules of a user and the defaults.
create unique index limit_rule_match on limit_rule (coalesce(user_id, 0), coalesce(credential_id, 0), kind, window_s);
-- The cascades.
create index limit_rule_user on limit_rule (user_id);
create index limit_rule_credential on limit_rule (credential_id) where credential_id is not null;
alter table app_user add no_limit_defaults boolean not null default false;
insert into limit_rule (user_id, kind, max)
    select id, 'size', max_size from app_user where max_size is not null
    union all
    select id, 'recipients_per_message', max_recipients from app_user where max_recipients is not null;
alter table app_user drop column max_size, drop column max_recipients;

-- Networks from which a user has logged in: /24 and /48. Read by AUTH; written once a day for each.
create table known_network (
    user_id  bigint not null references app_user (id) on delete cascade,
    network  cidr not null,
    first_at timestamptz not null default now(), -- since then, without a gap of 30 days
    last_at  timestamptz not null default now(),
    primary key (user_id, network)
);

-- Failed logins of the last hours, shared by the nodes. key is a hash of what is
-- counted (a network, an account, or both): names are typed by strangers.
create table auth_failure (
    key        bytea primary key,
    failures   integer not null,
    since      timestamptz not null,
    updated_at timestamptz not null
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
-- Each node reads every half second what others have counted.
create index auth_failure_updated on auth_failure (updated_at);

-- Owned by the package policy --------------------------------------------------

-- Sessions of users whose sessions are limited. A row counts while the node's epoch
-- lives (table node, which the queue owns), so those of a node that died go with it.
-- Primary key: the end of a session.
create table live_session (
    id            bigint generated always as identity primary key,
    epoch         bigint not null,
    user_id       bigint not null,
    credential_id bigint not null,
    opened_at     timestamptz not null default now()
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000);
-- AUTH counts the sessions of a user.
create index live_session_user on live_session (user_id);

-- Owned by the package queue ---------------------------------------------------

-- What the policy said when the message was accepted, for trace.
alter table message add rule text not null default '', add usage text not null default '';
-- Trace by Message-ID, sender and recipient. What is asked of live recipients only (by
-- user, by address) reads them all: an index more would be written with each message.
create index message_header_id on message (header_id);
create index message_sender on message (lower(sender_local || '@' || sender_domain), id);
create index attempt_recipient on attempt (lower(local || '@' || domain), message_id);

-- The upstream of the last attempt, for the queue's listing.
alter table recipient add last_upstream text not null default '';

-- Mail of a user (credential_id 0), or of one credential, that waits for an admin.
-- Primary key: each message that comes in or comes back is looked up.
create table hold (
    user_id       bigint not null,
    credential_id bigint not null default 0,
    reason        text not null,
    made_by       text not null,
    made_at       timestamptz not null default clock_timestamp(),
    primary key (user_id, credential_id)
);

-- What was charged against each limit with a window, in buckets of window/60: at are
-- the buckets' numbers, ascending, n what they hold. scope 1 is a user, 2 a credential;
-- kind 1 messages, 2 recipients, 3 octets. Primary key: charge_usage, which locks in its order.
create table usage_window (
    scope     smallint not null,
    subject   bigint   not null,
    kind      smallint not null,
    window_s  integer  not null,
    at        bigint[] not null default '{}',
    n         bigint[] not null default '{}',
    warned_at timestamptz,
    primary key (scope, subject, kind, window_s)
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);

-- The breaker's thresholds; null: that signal is off. One row for ever.
create table breaker (
    one                boolean primary key default true check (one),
    min_recipients     integer not null default 50 check (min_recipients > 0),
    first_time_share   double precision check (first_time_share > 0 and first_time_share <= 1),
    rejected_share     double precision check (rejected_share > 0 and rejected_share <= 1),
    new_network_factor double precision check (new_network_factor >= 1)
);
insert into breaker default values;

-- What users did, by the hour; only while a signal of the breaker is on.
create table activity (
    user_id     bigint      not null,
    hour        timestamptz not null,
    recipients  integer     not null default 0,
    first_time  integer     not null default 0, -- of them never written to before
    new_network integer     not null default 0, -- of them from a network not known
    delivered   integer     not null default 0,
    rejected    integer     not null default 0,
    primary key (user_id, hour)
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000);
-- Whom a user has written to, by a hash of the address; as activity. It goes with
-- the user. Primary key: each recipient is looked up.
create table correspondent (
    user_id   bigint not null,
    recipient bytea  not null,
    primary key (user_id, recipient)
);

-- Written by every package with the change that it records ----------------------

-- What admins did. Listed by time.
create table audit (
    id     bigint generated always as identity primary key,
    at     timestamptz not null default clock_timestamp(),
    actor  text  not null,                -- the operating system's user
    action text  not null,                -- 'user disable'
    object text  not null,                -- 'alice@example.com'
    detail jsonb not null default '{}'
);

-- Functions of the package queue -------------------------------------------------

-- When a row that goes back to waiting is held: as it was, or now if its user or its
-- credential is on hold.
create function held_since(message_id uuid, held_at timestamptz) returns timestamptz
language sql stable as $$
	select coalesce($2, (select now() from message m join hold h on h.user_id = m.user_id and h.credential_id in (0, m.credential_id)
		where m.id = $1 and exists (select from hold) limit 1))
$$;

-- Charges messages against their limits, one after the other, and says which are over.
--
-- rows: the limits' rows (scopes, subjects, kinds, windows) in the order of their key,
-- in which they are locked: the locks end with the transaction, so a charge is there
-- if its message is. Charges, by message: which message (msg), which row (row_of),
-- how much, and the limit. again: a message that is stored is not charged a second time.
--
-- A window is counted in buckets of a sixtieth. What was charged counts until 62
-- buckets later, so that a client that measures by the arrival of its replies does
-- not see more than the limit either.
--
-- Returns one row for each message: refused with the charge that refused it, its use
-- and when it would fit; or accepted with the use after it. And one for each limit
-- that has come to four fifths of it, with a null id.
create function charge_usage(ids uuid[], again boolean,
	scopes smallint[], subjects bigint[], kinds smallint[], windows integer[],
	msg integer[], row_of integer[], amounts bigint[], caps bigint[],
	out id uuid, out refused boolean, out charge integer, out used bigint, out retry_at timestamptz, out usage text)
returns setof record language plpgsql as $$
declare
	-- of the rows
	totals  bigint[];
	added   bigint[] := array_fill(0::bigint, array[cardinality(scopes)]);
	buckets bigint[];
	cap_of  bigint[] := array_fill(0::bigint, array[cardinality(scopes)]);
	stored  uuid[] := '{}';
	clock   double precision;
	i       integer := 1;
	j       integer;
	k       integer;
	names   text[] := array['messages', 'recipients', 'bytes'];
begin
	if cardinality(msg) = 0 then
		return;
	end if;
	insert into usage_window (scope, subject, kind, window_s)
		select t.s, t.u, t.k, t.w from unnest(scopes, subjects, kinds, windows) t(s, u, k, w)
		where not exists (select from usage_window x where x.scope = t.s and x.subject = t.u and x.kind = t.k and x.window_s = t.w)
		on conflict do nothing;
	-- Whoever has a limit's row for long must not keep the committer from others' mail.
	perform set_config('lock_timeout', '1s', true);
	perform from (select from unnest(scopes, subjects, kinds, windows) with ordinality t(s, u, k, w, nth)
		join usage_window x on x.scope = t.s and x.subject = t.u and x.kind = t.k and x.window_s = t.w
		order by t.nth for update of x) locked;
	perform set_config('lock_timeout', '15s', true);
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
		id := ids[msg[i]]; refused := false; charge := null; used := null; retry_at := null; usage := '';
		j := i;
		while j <= cardinality(msg) and msg[j] = msg[i] loop
			k := row_of[j];
			if not refused and amounts[j] > caps[j] - totals[k] - added[k] then
				refused := true; charge := j; used := totals[k] + added[k];
			end if;
			j := j + 1;
		end loop;
		if id = any(stored) then
			refused := false; usage := null;
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
		else
			for c in i .. j - 1 loop
				k := row_of[c];
				added[k] := added[k] + amounts[c];
				cap_of[k] := caps[c];
				usage := usage || case when c > i then ', ' else '' end || names[kinds[k]] || ' ' || (totals[k] + added[k]) || '/' || caps[c]
					|| ' in ' || windows[k] || 's' || case when scopes[k] = 2 then ' by credential' else '' end;
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
				id := null; refused := false; charge := k; used := totals[k] + added[k]; retry_at := null; usage := null;
				return next;
			end if;
		end if;
	end loop;
end
$$;
