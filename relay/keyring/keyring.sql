-- The current key, and who has which keys (keyring.go).

-- name: current
-- The key that seals, since when, and for how long.
select id, since, clock_timestamp() - since from sealing_key

-- name: record
-- Records what a node has, and forgets the nodes that are gone.
with gone as (delete from sealing_ring r where not exists (select from live_epoch e where e.epoch = r.epoch))
insert into sealing_ring (epoch, node, keys) values (@epoch, @node, @keys)
on conflict (epoch) do update set keys = excluded.keys

-- name: rings
-- A node without a row has no keys; one with an empty row needs none.
select n.name, coalesce(r.keys, '{}')
from live_epoch e join node n on n.epoch = e.epoch left join sealing_ring r on r.epoch = e.epoch
where r.keys is distinct from '{}' order by n.name

-- name: lock
-- Lets one act at a time change a file or the current key; the nodes read on.
lock table sealing_key in exclusive mode

-- name: use
-- Makes a key the current one.
insert into sealing_key (id) values (@id) on conflict (one) do update set id = excluded.id, since = excluded.since

-- name: added
-- Whether the audit has who added a key.
select exists (select from audit where action = 'key rotate' and object = @id)
