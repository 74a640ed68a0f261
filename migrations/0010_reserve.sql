-- Runs with: 0001
-- Room for outcomes on a full disk: relay/queue/room.go, docs/decisions/reserve.md.

-- Octets that are given back when the disk is full. Nothing is ever in it: its rows are
-- undone, and their pages stay. So dumps are not larger for it, and as it is unlogged it
-- costs no log, is in no base backup, and is emptied by the recovery after a crash, which
-- needs room as well. Rows this short need no TOAST table.
create unlogged table reserve (
	filler bit(15000) not null
) with (autovacuum_enabled = false, vacuum_truncate = false);

-- One row: since when the disk is full, and when a node last made the reserve, or tried to.
-- Accepting mail has nothing to do with it.
create table room (
	full_at  timestamptz,
	tried_at timestamptz not null default 'epoch',
	trying   boolean     not null default false -- still, or the server has died of it
) with (fillfactor = 50);
insert into room default values;
