-- The limits of a webhook's endpoint (docs/webhooks.md). Read and written by the package relay/webhook.
alter table webhook rename column at_once to concurrency;                   -- requests at the same time
alter table webhook rename constraint webhook_at_once_check to webhook_concurrency_check;
alter table webhook add column per_minute integer not null default 0 check (per_minute between 0 and 60000); -- requests; 0: no limit
