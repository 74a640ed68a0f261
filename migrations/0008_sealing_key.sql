-- The keys that secrets are sealed with; the keys themselves are in files (relay/seal). Written
-- by the package relay/keyring.

-- The current key of all nodes; without a row, the first of their files. Read by each node
-- every few seconds.
create table sealing_key (
	one   boolean     primary key default true check (one),
	id    text        not null,
	since timestamptz not null default clock_timestamp() check (isfinite(since))
);

-- The keys that a node has; none if it needs none. A row counts while the node's epoch lives (view
-- live_epoch); a living node without a row has no keys.
create table sealing_ring (
	epoch bigint primary key,
	node  text   not null,
	keys  text[] not null
);
