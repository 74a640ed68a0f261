-- Runs with: 0007
-- Mail that waits only because its destination is suspended: docs/delivery.md.

-- The way of a row that a suspension deferred, 'mx ' || domain_key or 'upstream ' || name;
-- null for all others. A claim clears it.
alter table recipient add waits_for text;

-- Recovered: what is due because its destination is back, the oldest first.
create index recipient_waits on recipient (waits_for, next_attempt_at) where waits_for is not null and owner is null;
