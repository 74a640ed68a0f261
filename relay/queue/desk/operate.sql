-- The actions of operators on recipients (operate.go). Their verb is a constant when the statement is
-- planned, so that each verb finds its rows by the index that it would have alone.

-- name: count
-- Counts what a verb would change or, for in_hand, what no verb touches.
select count(*) from recipient r
where @chosen
	and case @verb
		when 'in_hand' then r.owner is not null and r.state = 'waiting'
		when 'retry' then r.owner is null and r.state = 'waiting' and r.held_at is null and r.next_attempt_at > now()
		when 'hold' then r.owner is null and r.state = 'waiting' and r.held_at is null
		when 'release' then r.owner is null and r.held_at is not null and r.doubt is distinct from 'hold'
		when 'unresolved' then r.owner is null and r.doubt = 'hold' and r.state = 'waiting'
		when 'resolve' then r.owner is null and r.doubt is not null and r.state = 'waiting'
		when 'cancel' then r.owner is null and (r.state = 'waiting' or r.held_at is not null)
		when 'cancel_held' then r.owner is null and (r.state = 'waiting' or r.held_at is not null) and r.set_aside is null end

-- name: change
-- Carries out retry, hold, release or resend. A locked row is in use elsewhere. A release leaves out
-- mail that is held because it may have been delivered. A hold of the user also holds mail that is to be sent
-- again, and its history says so.
with w as materialized (select r.message_id, r.n, r.local, r.domain, clock_timestamp() as at from recipient r
	where @chosen
	and r.owner is null and case @verb
		when 'retry' then r.state = 'waiting' and r.held_at is null and r.next_attempt_at > now()
		when 'hold' then r.state = 'waiting' and r.held_at is null
		when 'release' then r.held_at is not null and r.doubt is distinct from 'hold'
		when 'resend' then r.doubt is not null and r.state = 'waiting' end
	limit @rows for update of r skip locked),
back as (update recipient r set
		next_attempt_at = case @verb when 'hold' then r.next_attempt_at else now() end,
		held_at = case @verb when 'hold' then now() when 'retry' then r.held_at
			when 'resend' then held_since(r.message_id, case when r.set_aside is not null then r.held_at end) end,
		doubt = case when @verb <> 'resend' then r.doubt end, stays_with = case when @verb <> 'resend' then r.stays_with end,
		waits_for = case when @verb <> 'resend' then r.waits_for end,
		set_aside = case @verb when 'release' then null else r.set_aside end
	from w where r.message_id = w.message_id and r.n = w.n
	returning w.*, @verb = 'resend' and r.held_at is not null and r.set_aside is null as held),
h as (insert into history (message_id, n, at, epoch, result, local, domain, reply_text)
	select message_id, n, at, 0, @verb, local, domain, 'by ' || @actor from w
	union all select message_id, n, at + interval '1 microsecond', 0, 'hold', local, domain, held_because(message_id) from back where held
	on conflict do nothing)
select count(*) from w

-- name: cancel
-- Carries out cancel, cancel_held (all but what is set aside) or, for what was delivered, resolve: the
-- recipients go. The body goes with the last row, as when it is delivered.
with w as materialized (select r.message_id, r.n, r.local, r.domain from recipient r
	where @chosen
	and r.owner is null and case @verb
		when 'resolve' then r.doubt is not null and r.state = 'waiting'
		when 'cancel' then r.state = 'waiting' or r.held_at is not null
		when 'cancel_held' then (r.state = 'waiting' or r.held_at is not null) and r.set_aside is null end
	limit @rows for update of r skip locked),
gone as (delete from recipient r using w where r.message_id = w.message_id and r.n = w.n returning r.message_id),
b as (delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id),
lost as (update notice t set lost = 'cancelled', lost_at = now() from gone where t.message_id = gone.message_id and t.lost is null and @verb <> 'resolve'),
h as (insert into history (message_id, n, at, epoch, result, local, domain, reply_text)
	select message_id, n, clock_timestamp(), 0, case @verb when 'resolve' then 'resolve' else 'cancel' end, local, domain, 'by ' || @actor from w on conflict do nothing)
select count(*) from w

-- name: make_hold
-- Keeps the first reason.
insert into hold (user_id, credential_id, reason, made_by) values (@user_id, @credential_id, @reason, @made_by) on conflict do nothing

-- name: end_holds
-- Ends the hold of a user and those of its credentials. The counts of the anomaly detector go with
-- it, or it would trip again immediately.
with past as (delete from activity where user_id = @user_id and hour >= date_trunc('hour', now()) - interval '1 hour')
delete from hold where user_id = @user_id

-- name: forget_user
-- Deletes a user's counts.
with past as (delete from activity where user_id = @user_id)
delete from correspondent where user_id = @user_id
