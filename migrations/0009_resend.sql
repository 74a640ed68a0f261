-- Runs with: 0005
-- Redirecting: docs/accounts.md, "Sender identity".

-- Whether the user may resend others' mail as what the pattern says. Programs that do not
-- know it add patterns without it, and let nobody resend.
alter table sender_pattern add resend boolean not null default false;
