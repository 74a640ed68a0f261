// Package relay holds the parts of the relay, one package per noun: the
// package comment of each is its contract, and imports_test.go beside this file holds
// which of them may import which. To start reading, follow one message through all of them:
// docs/flow.md.
//
//	smtp          the wire, both ways
//	message       header surgery on bytes
//	maillog       one typed function for each mail event
//	queue         the durable queue in Postgres: accept, own, settle
//	queue/content the octets of messages, in pieces
//	queue/desk    its tables for people: list, trace, hold, release, cancel, resolve
//	queue/reserve room on the database's disk, kept for outcomes
//	anomaly       holds the mail of a user whose account looks stolen
//	retention     what is kept, and for how long
//	certificate   what the listeners show in a handshake
//	acme          certificates from an authority, shared by all nodes
//	submission    the listeners on 587 and 465
//	seal          secrets that the database must not reveal
//	keyring       which key seals them, on all nodes
//	upstream      accounts with the smarthosts
//	upstream/oauth  access tokens for their accounts, shared by all nodes
//	upstream/breaker  which of them all nodes leave alone, and for how long
//	upstream/budget what they may be given, shared by all nodes
//	route         the rules that choose a recipient's way out
//	resolver      the DNS: one client and one cache for a node
//	transport     what a mail host must prove: DANE, MTA-STS, overrides
//	connect       conversations with upstreams and MX, up to where mail can be sent
//	delivery      sending to upstreams and to MX
//	bounce        RFC 3464 notices
//
// submission, delivery and bounce never import each other: they meet in the
// queue's rows.
//
// Beside this folder are auth, which answers who a client is (SASL is in auth/sasl.go),
// policy, which says what a user may send and how much (limits are in policy/quota), and
// admin, which serves health and metrics.
package relay
