-- Signatures (relay/dkim). Their keys are in 0012_dkim_key.sql.

-- SHA-256 of the body, which signatures are about; null: not taken, since the author's domain had no
-- key when the message was accepted. It goes unsigned.
alter table message add column body_hash bytea;

-- The keys that sign what this upstream is given. Providers with a preset sign themselves, and some
-- take no second signature.
alter table upstream add column dkim text not null default 'rsa' check (dkim in ('off', 'rsa', 'both'));
update upstream set dkim = 'off' where preset not in ('', 'generic');
