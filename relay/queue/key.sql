-- Keys of duplicates, beside the function admit (key.go).

-- name: is_known
-- Says whether one of these keys is in the table.
select exists (select from duplicate where key = any(@keys::uuid[]))

-- name: lock_keys
-- Waits for a transaction that accepts a duplicate of a message that is being voided, and keeps
-- later ones from it. Of the transaction of void_message, like what follows, each a statement of
-- its own: its snapshot is younger than the wait.
select count(*) from (select from duplicate where key = any(@keys::uuid[]) and message_id = @message_id order by key for update) locked

-- name: promised
-- Lists the recipients of a message of which a duplicate was accepted.
select coalesce(array_agg(distinct n), '{}') from history where message_id = @message_id and result = 'duplicate'

-- name: void_keys
-- Deletes the keys of the others, and the client's own if there are no such recipients.
delete from duplicate where key = any(@keys::uuid[]) and message_id = @message_id
	and n <> all(@kept::integer[]) and (n >= 0 or cardinality(@kept::integer[]) = 0)

-- name: not_voided
update message set voided_at = null where id = @message_id
