-- Runs with: 0007
-- Notices that tell of a message again: docs/queue-states.md, rule 10. Older programs leave
-- the defaults, and then such a notice counts for nobody.

alter table notice add user_id bigint not null default 0;       -- of the message that it is about
alter table notice add again   boolean not null default false;  -- it is not the first of its kind
-- sqlToldBefore: how many a user has had within the last hour.
create index notice_again on notice (user_id, message_id) where again;
