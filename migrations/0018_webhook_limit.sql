-- Runs with: 0017
-- A limit of a webhook's requests (docs/webhooks.md), which 0017 does not know. Read and written by the package relay/webhook.
alter table webhook add column per_minute integer not null default 0 check (per_minute between 0 and 60000); -- 0: no limit
