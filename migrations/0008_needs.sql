-- Runs with: 0005
-- What a message needs of a next hop, and what became of notices: see
-- docs/decisions/needs.md.

-- Octets beyond ASCII in the text. With it, utf8 and body_type say what a next hop must
-- offer, no longer what the client declared: body_type is '8BITMIME' or empty. Older
-- programs write what was declared, and then that is what the message needs.
alter table message add eight_bit boolean not null default false;

-- The notices among the messages, written with them. In a table of its own, so that
-- accepting mail has nothing to do with it.
-- Primary key: the end of a recipient, the trace and the deletion of a notice.
create table notice (
	message_id uuid        primary key,
	about      uuid        not null,                -- the message that it is about
	kind       text        not null check (kind in ('failure', 'delay', 'success')),
	lost       text        check (lost in ('failed', 'expired', 'cancelled')), -- ended undelivered, and how
	lost_at    timestamptz,
	told_at    timestamptz,                         -- the log and the metrics of some node have the loss
	check ((lost is null) = (lost_at is null))
);
-- The trace of a message: its notices.
create index notice_about on notice (about);
-- TellLost: what nobody was told of yet.
create index notice_untold on notice (lost_at) where lost is not null and told_at is null;
