-- The current key, and who has which keys (keyring.go).

-- name: current
select id, since, clock_timestamp() - since from sealing_key

-- name: record
-- Records what a node has, and forgets the nodes that are gone.
with gone as (delete from sealing_ring r where not exists (select from live_epoch e where e.epoch = r.epoch))
insert into sealing_ring (epoch, node, keys) values (@epoch, @node, @keys)
on conflict (epoch) do update set keys = excluded.keys

-- name: rings
select r.node, r.keys from sealing_ring r join live_epoch e on e.epoch = r.epoch order by r.node

-- name: lock
-- Lets one act at a time change a file or the current key; the nodes read on.
lock table sealing_key in exclusive mode

-- name: use
insert into sealing_key (id) values (@id) on conflict (one) do update set id = excluded.id, since = excluded.since

-- name: added
-- Whether the audit has who added a key.
select exists (select from audit where action = 'key rotate' and object = @id)
