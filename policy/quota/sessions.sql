-- Sessions of users whose sessions are limited (sessions.go). They count while the epoch
-- of their node lives, which the queue's view live_epoch says.

-- name: not_durable
select set_config('synchronous_commit', 'off', true)

-- name: lock_sessions
-- Goes before enter_session in its transaction: statements see what is committed when they
-- begin, so the count has to begin after the lock. An advisory lock of a transaction ends
-- with it, so it works behind poolers; a lock of the row in app_user would write to it, and
-- wait for admins who change the user. The domain's lock, if it has a limit, comes first on
-- all nodes.
select set_config('synchronous_commit', 'off', true),
	case when @limited_domain::text <> '' then pg_advisory_xact_lock(@lock_domain, hashtext(@limited_domain::text))::text end,
	pg_advisory_xact_lock(@lock, (@user_id::bigint % 2147483648)::int)

-- name: enter_session
-- Adds a session unless as many of the user, of the credential or, if it has a limit, of the
-- domain are open as may be, and deletes those whose nodes died. The id is null when it was
-- not added.
with mine as materialized (
	select s.id, s.user_id, s.credential_id, s.domain, exists (select from live_epoch e where e.epoch = s.epoch) as alive
	from live_session s where s.user_id = @user_id or s.domain = nullif(@limited_domain::text, '')),
swept as (
	delete from live_session where id in (
		select s.id from live_session s join mine m on m.id = s.id where not m.alive for update of s skip locked)),
counted as (
	select count(*) filter (where user_id = @user_id) as by_user,
		count(*) filter (where user_id = @user_id and credential_id = @credential_id) as by_credential,
		count(*) filter (where domain = @limited_domain) as by_domain
	from mine where alive),
entered as (
	insert into live_session (epoch, user_id, credential_id, domain)
	select @epoch, @user_id, @credential_id, @domain from counted
	where by_user < @most_of_user and by_credential < @most_of_credential and by_domain < @most_of_domain
		and exists (select from live_epoch where epoch = @epoch)
	returning id)
select by_user, by_credential, by_domain, (select id from entered) from counted

-- name: leave_sessions
delete from live_session where id = any(@id::bigint[])

-- name: list_sessions
-- Makes sessions count under an epoch: those whose row is under one that this node has lost,
-- or was deleted with it.
insert into live_session (id, epoch, user_id, credential_id, domain) overriding system value
select o.id, @epoch, o.user_id, o.credential_id, o.domain
from unnest(@id::bigint[], @user_id::bigint[], @credential_id::bigint[], @domain::text[]) o(id, user_id, credential_id, domain)
where not exists (select from live_session s where s.id = o.id and s.epoch = @epoch)
on conflict (id) do update set epoch = excluded.epoch

-- name: unlist_sessions
-- Deletes what must not count: under the node's epoch, rows that are not open, whose delete
-- or whose reply to Enter was lost (younger ones may be on their way); and under dead epochs.
delete from live_session where id in (
	select s.id from live_session s
	where case when s.epoch = @epoch then s.opened_at < now() - interval '1 minute' and s.id not in (select unnest(@id::bigint[]))
		else not exists (select from live_epoch e where e.epoch = s.epoch) end
	for update skip locked)
