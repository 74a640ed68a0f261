// Package relay holds the parts of the relay, one package per noun: the
// package comment of each is its contract, and imports_test.go beside this file lists
// which may import which. To start reading, follow one message through all of them in
// docs/flow.md.
//
//	smtp          the wire, both ways
//	message       header surgery on bytes
//	maillog       one typed function for each mail event
//	queue         the durable queue in Postgres: accept, own, settle
//	queue/content the octets of messages, in pieces
//	queue/desk    what operators do with it: list, trace, hold, release, cancel, resolve
//	queue/reserve disk space of the database, reserved for outcomes
//	suppression   the addresses that get no more mail, by bounces and by admins
//	anomaly       holds the mail of a user whose account looks stolen
//	feed          what became of mail, as a sequence of events
//	retention     deletes old data
//	certificate   the certificates that the listeners present
//	acme          certificates from an authority, shared by all nodes
//	submission    the listeners on 587 and 465
//	seal          secrets that the database must not reveal
//	keyring       the keys that seal them, the same on all nodes
//	dkim          signatures of messages
//	dkim/keys     the keys that sign for sender domains, and their life, on all nodes
//	upstream      the smarthosts: settings, accounts, what their replies mean
//	upstream/oauth  access tokens for these accounts, shared by all nodes
//	upstream/breaker  the upstreams that all nodes leave alone, and for how long
//	upstream/budget how much mail all nodes together may give each of them
//	route         the rules that choose the ways for a recipient
//	resolver      the DNS: one client and one cache for a node
//	transport     what a mail host must prove: DANE, MTA-STS, overrides
//	connect       connections to upstreams and MX, up to the point where mail can be sent
//	delivery      sending to upstreams and to MX
//	bounce        RFC 3464 notices
//
// submission, delivery and bounce never import each other: they meet in the
// queue's rows.
//
// Beside this folder are auth, which authenticates clients (SASL is in auth/sasl.go), policy,
// which decides what a user may send and how much (limits are in policy/quota), and admin,
// which serves health and metrics.
package relay
