// Package transport knows what a mail host (MX) must prove before it gets a message: by DANE
// (RFC 7672), by MTA-STS (RFC 8461), or by an admin's override.
//
// Job: decide the policy of each mail host ([Decide]), verify certificates by TLSA records, get the
// MTA-STS policies of domains and keep them in the database for all nodes, renewed before they end.
// It makes no SMTP connection.
//
// Invariants: TLSA records count only if the resolver validated them, and the addresses of their
// host; an answer that is bogus, or none, is trouble and never a weaker policy; a policy that is kept
// holds until its end, whatever a fetch or a TXT record says; of all nodes one fetches a policy, by a
// lease on its row that the database's clock ends, and no connection and no transaction is held
// meanwhile; what a foreign server sends is bounded in size and time, and redirects are not followed.
//
// Failure: without the database nobody knows what a domain demands, so mail to MX waits. A policy
// that cannot be had is tried again after minutes; until then the domain is as one without a policy
// (RFC 8461 section 3.3), unless one is kept.
package transport
