-- The statement of a group commit: one round trip, one implicit transaction (group.go).
-- Each array has an element for each message, each row of a body, each recipient, or each
-- charge of the group. Recipients name their message by its number; what all of them would
-- leave empty is null. Arrays become rows in a list of columns, not in from, where PostgreSQL would
-- write each of them, and the bodies, into a store of its own first.

-- name: enqueue
-- For mail whose keys are looked at (@judged), or that has none.
with fence as materialized (select from node where epoch = @epoch and reaped_at is null),
@enqueued

-- name: enqueue_keyed
-- For mail with keys of duplicates, which are nearly always new: puts them in before all else, in the
-- order in which they are given, and fails by duplicate_pkey if one is there. A transaction that has
-- one is waited for.
with fence as materialized (select from node where epoch = @epoch and reaped_at is null),
keys as (
	insert into duplicate (key, message_id, until, content, n)
	select k.key, (@id::uuid[])[k.message], clock_timestamp() + make_interval(secs => k.span), nullif(k.content, '00000000-0000-0000-0000-000000000000'), k.n
	from (select unnest(@key::uuid[]) as key, unnest(@key_message::integer[]) as message, unnest(@key_n::integer[]) as n,
			unnest(@key_span::integer[]) as span, unnest(@key_content::uuid[]) as content) k
	where exists (select from fence)
	returning n),
@enqueued
where (select count(*) from keys) >= 0 -- asked first, and so run first

-- part: enqueued
-- Inserts nothing if the epoch is dead. Mail of a user on hold is born owned like other mail,
-- and held when it is released; what is returned of it keeps it from delivery. Nearly always
-- nobody is on hold, and that is all that is looked at then.
--
-- @judged finds duplicates and charges limits first: what is one, or over a limit, is in no table.
--
-- @again is for a commit in doubt, whatever became of the epoch: what exists is left alone
-- (its rows may be finished and gone by now, so they are inserted only with their message),
-- and a word to the server's log makes it write even then. An earlier try that commits only
-- now makes it fail by the key of its message.
judged as materialized (
	select v.* from admit(@id::uuid[], @again, @epoch::bigint, @node::text, @accepted_at::timestamptz[],
		@key::uuid[], @key_message::integer[], @key_n::integer[], @key_span::integer[], @key_content::uuid[],
		@limit_scope::text[], @limit_subject::text[], @limit_kind::text[], @limit_window::integer[],
		@charge_message::integer[], @charge_limit::integer[], @charge_amount::bigint[], @charge_most::bigint[]) v
	where @judged and (@again or exists (select from fence))),
h as materialized (
	select u.id from (select unnest(@id::uuid[]) as id, unnest(@user_id::bigint[]) as user_id, unnest(@credential_id::bigint[]) as credential_id) u
	where exists (select from hold)
		and exists (select from hold where hold.user_id = u.user_id and hold.credential_id in (0, u.credential_id))),
m as (
	insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, eight_bit, ret, envid, header_id,
		accepted_at, client_addr, client_hello, listener, tls, tls_need, recipients, rule, body_hash, tags, metadata, node, usage)
	select u.id, u.user_id, u.credential_id, u.sender_local, u.sender_domain, u.size, u.body_type, u.utf8, u.eight_bit, u.ret, u.envid, u.header_id,
		u.accepted_at, u.client_addr, u.client_hello, u.listener, u.tls, u.tls_need,
		u.recipients - case when @judged then case when exists (select from judged v where v.n >= 0)
			then (select count(*) from judged v where v.id = u.id and v.n >= 0) else 0 end else 0 end,
		u.rule, u.body_hash, nullif(u.tags, '')::text[], nullif(u.metadata, '')::jsonb,
		@node, case when @judged then case when exists (select from judged) then (select v.usage from judged v where v.id = u.id and v.usage is not null) end end
	from (select unnest(@id::uuid[]) as id, unnest(@user_id::bigint[]) as user_id, unnest(@credential_id::bigint[]) as credential_id,
			unnest(@sender_local::text[]) as sender_local, unnest(@sender_domain::text[]) as sender_domain, unnest(@size::bigint[]) as size,
			unnest(@body_type::text[]) as body_type, unnest(@utf8::boolean[]) as utf8, unnest(@eight_bit::boolean[]) as eight_bit,
			unnest(@ret::text[]) as ret, unnest(@envid::text[]) as envid, unnest(@header_id::text[]) as header_id,
			unnest(@accepted_at::timestamptz[]) as accepted_at, unnest(@client_addr::text[]) as client_addr,
			unnest(@client_hello::text[]) as client_hello, unnest(@listener::text[]) as listener, unnest(@tls::text[]) as tls,
			unnest(@tls_need::text[]) as tls_need, unnest(@recipients::int[]) as recipients, unnest(@rule::text[]) as rule,
			unnest(@body_hash::bytea[]) as body_hash, unnest(@tags::text[]) as tags, unnest(@metadata::text[]) as metadata) u
	where (@again or exists (select from fence))
		and (not @judged or not exists (select from judged) or u.id not in (select v.id from judged v where v.refused))
		and (not @again or (select stored.id from message stored where stored.id = u.id) is null)
	returning id),
b as (
	insert into body (message_id, n, chunk)
	select u.* from (select unnest(@body_id::uuid[]) as id, unnest(@body_n::int[]) as n, unnest(@chunk::bytea[]) as chunk) u
	where (@again or exists (select from fence))
		and (not @judged or not exists (select from judged) or u.id not in (select v.id from judged v where v.refused))
		and (not @again or u.id in (select m.id from m))),
r as (
	insert into recipient (message_id, n, user_id, dot_possible, tell, notify, domain_key, local, domain, orcpt_type, orcpt, owner, expires_at)
	select (@id::uuid[])[u.message], u.n, (@user_id::bigint[])[u.message], (@dot_possible::boolean[])[u.message], u.tell, u.notify,
		coalesce(u.domain_key, u.domain), u.local, u.domain, coalesce(u.orcpt_type, ''), coalesce(u.orcpt, ''), @epoch, now() + @lifetime::interval
	from (select unnest(@rcpt_message::int[]) as message, unnest(@rcpt_n::int[]) as n, unnest(@tell::smallint[]) as tell,
			unnest(@notify::smallint[]) as notify, unnest(@domain_key::text[]) as domain_key, unnest(@local::text[]) as local,
			unnest(@domain::text[]) as domain, unnest(@orcpt_type::text[]) as orcpt_type, unnest(@orcpt::text[]) as orcpt) u
	where (@again or exists (select from fence))
		and (not @judged or not exists (select from judged) or (@id::uuid[])[u.message] not in (select v.id from judged v where v.refused)
			and ((@id::uuid[])[u.message], u.n) not in (select v.id, v.n from judged v where v.n is not null))
		and (not @again or (@id::uuid[])[u.message] in (select m.id from m)))
select (select count(*) from m), durably(),
	case when exists (select from hold) then (select array_agg(h.id) from h) end,
	a.refused, a.used, a.retry_at, a.near, a.near_used, a.copied, a.copied_n, a.first,
	case when @again then pg_logical_emit_message(true, 'postern', 'a commit in doubt, again')::text end
from (values (1)) one left join lateral (
	select array_agg(v.charge) filter (where v.charge is not null and v.refused) as refused,
		array_agg(v.used) filter (where v.charge is not null and v.refused) as used,
		array_agg(v.retry_at) filter (where v.charge is not null and v.refused) as retry_at,
		array_agg(v.charge) filter (where v.id is null) as near,
		array_agg(v.used) filter (where v.id is null) as near_used,
		array_agg(v.id) filter (where v.n is not null) as copied,
		array_agg(v.n) filter (where v.n is not null) as copied_n,
		array_agg(v.first) filter (where v.n is not null) as first
	from judged v) a on @judged
