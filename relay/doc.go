// Package relay holds the parts of the relay, one package per concept. The package comment
// of each is its contract, and imports_test.go beside this file lists which may import
// which. To start reading, follow one message through all of them in docs/flow.md.
//
//	smtp             the wire, both ways
//	message          header surgery on bytes
//	maillog          one typed function for each mail event
//	queue            the durable queue in PostgreSQL: accept, own, settle
//	queue/content    the bytes of messages, in chunks
//	queue/desk       what operators do with it: list, trace, hold, release, cancel, resolve
//	queue/insert     what a message is, and the statement that stores a group of them
//	queue/reserve    database disk space kept free for outcomes
//	suppression      the addresses that get no more mail, by bounces and by admins
//	refused          tells of recipients that were refused, once a minute
//	anomaly          holds the mail of a user whose account looks compromised
//	feed             what became of mail, as a sequence of events
//	webhook          sends these events to HTTP endpoints
//	alert            mails what is wrong to the people who run this
//	retention        deletes old data
//	certificate      the certificates that the listeners present
//	acme             certificates from an ACME CA, shared by all nodes
//	submission       the listeners on 587 and 465
//	seal             encryption of secrets stored in the database
//	keyring          the keys for it, the same on all nodes
//	dkim             message signatures
//	dkim/keys        the keys that sign for sender domains, and their life cycle, on all nodes
//	upstream         the smarthosts: settings, accounts, what their replies mean
//	upstream/oauth   access tokens for these accounts, shared by all nodes
//	upstream/breaker circuit breakers shared by all nodes
//	upstream/budget  how much mail all nodes together may give each of them
//	route            the rules that choose the ways (upstreams, or MX) for a recipient
//	resolver         DNS: one client and one cache per node
//	transport        what a mail host must prove: DANE, MTA-STS, overrides
//	connect          connections to upstreams and MX, up to the point where mail can be sent
//	delivery         sending to upstreams and to MX
//	bounce           RFC 3464 notices
//
// submission, delivery and bounce never import each other: they communicate only through
// queue rows.
//
// Beside this folder are auth, which authenticates clients (SASL is in auth/sasl.go), policy,
// which decides what a user may send and how much (limits are in policy/quota), and admin,
// which serves health and metrics.
package relay
