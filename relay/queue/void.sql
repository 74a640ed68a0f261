-- A message that was refused and may be there (void.go).

-- name: void_message
-- Waits for a transaction that is still inserting this id, and takes the id if there is none,
-- so that a commit that comes later is refused by its key. void_rows is of the same transaction.
insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id,
	accepted_at, client_addr, client_hello, listener, tls, node, recipients, voided_at)
values (@id, @user_id, @credential_id, @sender_local, @sender_domain, @size, '', false, '', '', '', @accepted_at, '', '', '', '', @node, @recipients, clock_timestamp())
on conflict (id) do update set voided_at = clock_timestamp()
returning durably()

-- name: void_rows
-- A statement of its own: its snapshot is younger than the wait.
with gone as (delete from recipient where message_id = @message_id and owner is not distinct from @epoch and n <> all(@kept::integer[]) returning message_id, n, local, domain),
told as (insert into history (message_id, n, at, epoch, result, local, domain, node, reply_text)
	select message_id, n, clock_timestamp(), @epoch, 'void', local, domain, @node, 'refused with 451: its commit was not known in time' from gone)
delete from body b where b.message_id = @message_id
	and not exists (select from recipient r where r.message_id = @message_id and (r.owner is distinct from @epoch or r.n = any(@kept::integer[])))
