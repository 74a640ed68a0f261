-- Runs with: 0006
-- A migration as the next version may have one: only the test of an upgrade applies
-- it. It touches the tables that every message goes through, by the rule: what is
-- added has a default, and what older programs read and write stays.
alter table message add column next_note text not null default '';
alter table recipient add column next_count integer not null default 0;
create index message_next_note on message (next_note) where next_note <> '';
