// Package webhook sends the events of the feed (relay/feed) to HTTP endpoints (docs/webhooks.md). No other
// package knows the tables webhook, webhook_retry and webhook_try.
//
// Job: a [Sender] runs on each node that delivers mail. A webhook is leased to one of them, which sends
// events that wait for another try, and then new ones. Admins have a [Store].
//
// Invariants: an event leaves the feed for an endpoint only after it was taken, or is a row of
// webhook_retry, or was given up; each event is one request, with the same id and body at each try; no
// transaction and no connection of the database is in use while an endpoint is waited for; an endpoint
// has connections of its own, one time limit for a request with all that it takes, and no other waits for
// it; its requests per minute are limited by whoever has the lease, who begins with a pause; no request goes
// to an address that is not public, unless the configuration file allows it.
//
// Crash: events that were sent and not yet settled are sent again. A process that lost its lease settles none.
//
// Failure: an error of the database ends nothing; the same events are sent again when it answers.
package webhook
