-- What operators do to recipients (operate.go). Their filter is that of list, and their verb is a
-- constant when the statement is planned, so that each verb finds its rows by the index that it
-- would have alone.

-- name: count
-- Counts what a verb would change or, for in_hand, what no verb touches.
select count(*) from recipient r
where (@ids::uuid[] is null or r.message_id = any(@ids))
	and (@state = '' or case when r.held_at is not null then 'held' when r.state <> 'waiting' then r.state when r.owner is not null then 'sending' else 'waiting' end = @state)
	and (@state <> 'held' or r.held_at is not null) and (@state <> 'waiting' or r.held_at is null and r.owner is null and r.state = 'waiting')
	and (@user_id = 0 or r.user_id = @user_id)
	and (@credential_id = 0 or (select o.credential_id from message o where o.id = r.message_id) = @credential_id)
	and (@sender::text[] is null or (select lower(o.sender_local || '@' || o.sender_domain) from message o where o.id = r.message_id) = any(array(select lower(f) from unnest(@sender) f)))
	and (@recipient::text[] is null or lower(r.local || '@' || r.domain) = any(array(select lower(f) from unnest(@recipient) f)))
	and (@domain = '' or r.domain_key = @domain) and (@upstream = '' or coalesce(r.stays_with, r.last_upstream) = @upstream) and sane_time(r.accepted_at) <= now() - @older_than::interval
	and (@reply = '' or starts_with(concat_ws(' ', nullif(r.reply_code, 0), nullif(r.reply_enhanced, ''), r.reply_text), @reply))
	and case @verb
		when 'in_hand' then r.owner is not null and r.state = 'waiting'
		when 'retry' then r.owner is null and r.state = 'waiting' and r.held_at is null and r.next_attempt_at > now()
		when 'hold' then r.owner is null and r.state = 'waiting' and r.held_at is null
		when 'release' then r.owner is null and r.held_at is not null
		when 'cancel' then r.owner is null and (r.state = 'waiting' or r.held_at is not null)
		when 'cancel_held' then r.owner is null and (r.state = 'waiting' or r.held_at is not null) and r.set_aside is null end

-- name: change
-- Carries out retry, hold or release. A locked row is in somebody's hand.
with w as materialized (select r.message_id, r.n, r.local, r.domain from recipient r
	where (@ids::uuid[] is null or r.message_id = any(@ids))
	and (@state = '' or case when r.held_at is not null then 'held' when r.state <> 'waiting' then r.state when r.owner is not null then 'sending' else 'waiting' end = @state)
	and (@state <> 'held' or r.held_at is not null) and (@state <> 'waiting' or r.held_at is null and r.owner is null and r.state = 'waiting')
	and (@user_id = 0 or r.user_id = @user_id)
	and (@credential_id = 0 or (select o.credential_id from message o where o.id = r.message_id) = @credential_id)
	and (@sender::text[] is null or (select lower(o.sender_local || '@' || o.sender_domain) from message o where o.id = r.message_id) = any(array(select lower(f) from unnest(@sender) f)))
	and (@recipient::text[] is null or lower(r.local || '@' || r.domain) = any(array(select lower(f) from unnest(@recipient) f)))
	and (@domain = '' or r.domain_key = @domain) and (@upstream = '' or coalesce(r.stays_with, r.last_upstream) = @upstream) and sane_time(r.accepted_at) <= now() - @older_than::interval
	and (@reply = '' or starts_with(concat_ws(' ', nullif(r.reply_code, 0), nullif(r.reply_enhanced, ''), r.reply_text), @reply))
	and r.owner is null and case @verb
		when 'retry' then r.state = 'waiting' and r.held_at is null and r.next_attempt_at > now()
		when 'hold' then r.state = 'waiting' and r.held_at is null
		when 'release' then r.held_at is not null end
	limit @rows for update of r skip locked),
back as (update recipient r set
		next_attempt_at = case @verb when 'hold' then r.next_attempt_at else now() end,
		held_at = case @verb when 'hold' then now() when 'retry' then r.held_at end,
		set_aside = case @verb when 'release' then null else r.set_aside end
	from w where r.message_id = w.message_id and r.n = w.n),
h as (insert into history (message_id, n, at, epoch, result, local, domain, reply_text)
	select message_id, n, clock_timestamp(), 0, @verb, local, domain, 'by ' || @actor from w on conflict do nothing)
select count(*) from w

-- name: cancel
-- Discards recipients, without what is set aside unless @aside. The body goes with the last row,
-- as when it is delivered.
with w as materialized (select r.message_id, r.n, r.local, r.domain from recipient r
	where (@ids::uuid[] is null or r.message_id = any(@ids))
	and (@state = '' or case when r.held_at is not null then 'held' when r.state <> 'waiting' then r.state when r.owner is not null then 'sending' else 'waiting' end = @state)
	and (@state <> 'held' or r.held_at is not null) and (@state <> 'waiting' or r.held_at is null and r.owner is null and r.state = 'waiting')
	and (@user_id = 0 or r.user_id = @user_id)
	and (@credential_id = 0 or (select o.credential_id from message o where o.id = r.message_id) = @credential_id)
	and (@sender::text[] is null or (select lower(o.sender_local || '@' || o.sender_domain) from message o where o.id = r.message_id) = any(array(select lower(f) from unnest(@sender) f)))
	and (@recipient::text[] is null or lower(r.local || '@' || r.domain) = any(array(select lower(f) from unnest(@recipient) f)))
	and (@domain = '' or r.domain_key = @domain) and (@upstream = '' or coalesce(r.stays_with, r.last_upstream) = @upstream) and sane_time(r.accepted_at) <= now() - @older_than::interval
	and (@reply = '' or starts_with(concat_ws(' ', nullif(r.reply_code, 0), nullif(r.reply_enhanced, ''), r.reply_text), @reply))
	and r.owner is null and (r.state = 'waiting' or r.held_at is not null) and (@aside or r.set_aside is null)
	limit @rows for update of r skip locked),
gone as (delete from recipient r using w where r.message_id = w.message_id and r.n = w.n returning r.message_id),
b as (delete from body using (
		select g.message_id from (select message_id, count(*) as rows from gone group by message_id) g
		where g.rows = (select count(*) from recipient r where r.message_id = g.message_id)) as last
	where body.message_id = last.message_id),
lost as (update notice t set lost = 'cancelled', lost_at = now() from gone where t.message_id = gone.message_id and t.lost is null),
h as (insert into history (message_id, n, at, epoch, result, local, domain, reply_text)
	select message_id, n, clock_timestamp(), 0, 'cancel', local, domain, 'by ' || @actor from w on conflict do nothing)
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
