-- Rows that cannot be used (aside.go).

-- name: set_aside
-- Holds a recipient that its owner (0: nobody) cannot use. Times that the schema would refuse are
-- mended, or this could not be written. An earlier try that succeeded is in the history at the
-- same time: an admin may have released the recipient since, and it is left alone.
with bad as materialized (select message_id, n, local, domain from recipient
	where message_id = @message_id and n = @n and coalesce(owner, 0) = @owner and held_at is null
		and not exists (select from history where message_id = @message_id and n = @n and at = @at and epoch = @owner) for update),
back as (update recipient r set owner = null, dot_possible = false, held_at = now(), set_aside = @reason,
		possible_duplicate = r.possible_duplicate or @unknown, attempts = greatest(r.attempts, 0),
		accepted_at = case when r.accepted_at = sane_time(r.accepted_at) then r.accepted_at else now() end,
		expires_at = case when r.expires_at = sane_time(r.expires_at) then r.expires_at else now() + @lifetime::interval end,
		next_attempt_at = now(), notice_at = case when r.notice_at = sane_time(r.notice_at) then r.notice_at else now() end,
		last_attempt_at = case when r.last_attempt_at = sane_time(r.last_attempt_at) then r.last_attempt_at end
	from bad where r.message_id = bad.message_id and r.n = bad.n),
h as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text, possible_duplicate)
	select message_id, n, @at, @owner, 'hold', local, domain, @node, 'set aside: ' || @reason, @unknown from bad on conflict do nothing)
select (select count(*) from bad), durably()
