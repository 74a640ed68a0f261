-- The statements of a group commit: one round trip, one implicit transaction (commit.go).
-- Each array has an element for each message, each row of a body, each recipient, or each
-- charge of the group.

-- name: enqueue
-- Inserts nothing if the epoch is dead. Mail of a user on hold is born owned like other mail,
-- and held when it is released; what is returned of it keeps it from delivery. Nearly always
-- nobody is on hold, and that is all that is looked at then.
with fence as materialized (select epoch from node where epoch = @epoch and reaped_at is null),
h as materialized (
	select u.id from unnest(@id::uuid[], @user_id::bigint[], @credential_id::bigint[]) u(id, user_id, credential_id)
	where exists (select from hold)
		and exists (select from hold where hold.user_id = u.user_id and hold.credential_id in (0, u.credential_id))),
m as (
	insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
		accepted_at, client_addr, client_hello, listener, tls, recipients, rule, node, usage)
	select u.*, @node, ''
	from unnest(@id::uuid[], @user_id::bigint[], @credential_id::bigint[], @sender_local::text[], @sender_domain::text[], @size::bigint[],
			@body_type::text[], @utf8::boolean[], @eight_bit::boolean[], @ret::text[], @envid::text[], @header_id::text[],
			@accepted_at::timestamptz[], @client_addr::text[], @client_hello::text[], @listener::text[], @tls::text[], @recipients::int[],
			@rule::text[])
		u(id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
			accepted_at, client_addr, client_hello, listener, tls, recipients, rule)
		cross join fence
	returning id),
b as (
	insert into body (message_id, n, chunk)
	select u.* from unnest(@body_id::uuid[], @body_n::int[], @chunk::bytea[]) u(id, n, chunk)
		cross join fence),
r as (
	insert into recipient (message_id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt, owner, expires_at)
	select u.*, @epoch, now() + @lifetime::interval
	from unnest(@rcpt_id::uuid[], @rcpt_n::int[], @rcpt_user::bigint[], @dot_possible::boolean[], @tell::smallint[], @notify::smallint[],
			@domain_key::text[], @local::text[], @domain::text[], @orcpt_type::text[], @orcpt::text[])
		u(id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
		cross join fence)
select (select count(*) from m),
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true),
	case when exists (select from hold) then (select array_agg(h.id) from h) end

-- name: enqueue_limited
-- enqueue with limits, which come first: what is over one is in no table.
with fence as materialized (select epoch from node where epoch = @epoch and reaped_at is null),
verdict as materialized (
	select v.* from fence cross join lateral charge_usage(@id::uuid[], false,
		@limit_scope::text[], @limit_subject::text[], @limit_kind::text[], @limit_window::integer[],
		@charge_message::integer[], @charge_limit::integer[], @charge_amount::bigint[], @charge_most::bigint[]) v),
h as materialized (
	select u.id from unnest(@id::uuid[], @user_id::bigint[], @credential_id::bigint[]) u(id, user_id, credential_id)
	where exists (select from hold)
		and exists (select from hold where hold.user_id = u.user_id and hold.credential_id in (0, u.credential_id))),
m as (
	insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
		accepted_at, client_addr, client_hello, listener, tls, recipients, rule, node, usage)
	select u.*, @node, coalesce((select v.usage from verdict v where v.id = u.id), '')
	from unnest(@id::uuid[], @user_id::bigint[], @credential_id::bigint[], @sender_local::text[], @sender_domain::text[], @size::bigint[],
			@body_type::text[], @utf8::boolean[], @eight_bit::boolean[], @ret::text[], @envid::text[], @header_id::text[],
			@accepted_at::timestamptz[], @client_addr::text[], @client_hello::text[], @listener::text[], @tls::text[], @recipients::int[],
			@rule::text[])
		u(id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
			accepted_at, client_addr, client_hello, listener, tls, recipients, rule)
		cross join fence
	where u.id not in (select v.id from verdict v where v.refused)
	returning id),
b as (
	insert into body (message_id, n, chunk)
	select u.* from unnest(@body_id::uuid[], @body_n::int[], @chunk::bytea[]) u(id, n, chunk)
		cross join fence
	where u.id not in (select v.id from verdict v where v.refused)),
r as (
	insert into recipient (message_id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt, owner, expires_at)
	select u.*, @epoch, now() + @lifetime::interval
	from unnest(@rcpt_id::uuid[], @rcpt_n::int[], @rcpt_user::bigint[], @dot_possible::boolean[], @tell::smallint[], @notify::smallint[],
			@domain_key::text[], @local::text[], @domain::text[], @orcpt_type::text[], @orcpt::text[])
		u(id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
		cross join fence
	where u.id not in (select v.id from verdict v where v.refused))
select (select count(*) from m),
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true),
	case when exists (select from hold) then (select array_agg(h.id) from h) end,
	(select array_agg(v.charge order by v.charge) from verdict v where v.refused),
	(select array_agg(v.used order by v.charge) from verdict v where v.refused),
	(select array_agg(v.retry_at order by v.charge) from verdict v where v.refused),
	(select array_agg(v.charge order by v.charge) from verdict v where v.id is null),
	(select array_agg(v.used order by v.charge) from verdict v where v.id is null)

-- name: enqueue_again
-- For a commit in doubt: what exists is left alone (its rows may be finished and gone by now,
-- so they are inserted only with their message), and touching the node's row makes it write
-- even then.
with fence as (update node set touched = touched + 1 where epoch = @epoch),
verdict as materialized (
	select v.* from charge_usage(@id::uuid[], true,
		@limit_scope::text[], @limit_subject::text[], @limit_kind::text[], @limit_window::integer[],
		@charge_message::integer[], @charge_limit::integer[], @charge_amount::bigint[], @charge_most::bigint[]) v
	where cardinality(@charge_message) > 0),
h as materialized (
	select u.id from unnest(@id::uuid[], @user_id::bigint[], @credential_id::bigint[]) u(id, user_id, credential_id)
	where exists (select from hold)
		and exists (select from hold where hold.user_id = u.user_id and hold.credential_id in (0, u.credential_id))),
m as (
	insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
		accepted_at, client_addr, client_hello, listener, tls, recipients, rule, node, usage)
	select u.*, @node, coalesce((select v.usage from verdict v where v.id = u.id), '')
	from unnest(@id::uuid[], @user_id::bigint[], @credential_id::bigint[], @sender_local::text[], @sender_domain::text[], @size::bigint[],
			@body_type::text[], @utf8::boolean[], @eight_bit::boolean[], @ret::text[], @envid::text[], @header_id::text[],
			@accepted_at::timestamptz[], @client_addr::text[], @client_hello::text[], @listener::text[], @tls::text[], @recipients::int[],
			@rule::text[])
		u(id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
			accepted_at, client_addr, client_hello, listener, tls, recipients, rule)
	where u.id not in (select v.id from verdict v where v.refused)
	on conflict (id) do nothing
	returning id),
b as (
	insert into body (message_id, n, chunk)
	select u.* from unnest(@body_id::uuid[], @body_n::int[], @chunk::bytea[]) u(id, n, chunk)
		join m on m.id = u.id),
r as (
	insert into recipient (message_id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt, owner, expires_at)
	select u.*, @epoch, now() + @lifetime::interval
	from unnest(@rcpt_id::uuid[], @rcpt_n::int[], @rcpt_user::bigint[], @dot_possible::boolean[], @tell::smallint[], @notify::smallint[],
			@domain_key::text[], @local::text[], @domain::text[], @orcpt_type::text[], @orcpt::text[])
		u(id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
		join m on m.id = u.id)
select (select count(*) from m),
	set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true),
	case when exists (select from hold) then (select array_agg(h.id) from h) end,
	x.charge, x.used, x.retry_at, x.near, x.near_used
from (
	select array_agg(v.charge order by v.charge) filter (where v.refused) as charge,
		array_agg(v.used order by v.charge) filter (where v.refused) as used,
		array_agg(v.retry_at order by v.charge) filter (where v.refused) as retry_at,
		array_agg(v.charge order by v.charge) filter (where v.id is null) as near,
		array_agg(v.used order by v.charge) filter (where v.id is null) as near_used
	from verdict v) x
