// Package acme gets certificates from an ACME authority (RFC 8555), renews them, and
// shares them with all nodes through the database. Its Keeper is what the set of
// certificates in relay/certificate shows from.
//
// Ordering, renewal times (ARI, RFC 9773) and OCSP stapling are certmagic's, which no
// other package knows; when and how often to try, and what is logged, is decided here.
// certmagic's storage is in Postgres: values are sealed, a lock is a row with a lease
// and a fencing token, and a certificate, its key and its metadata change in one
// statement, so that no crash leaves a key beside another's certificate.
//
// Invariants: of several nodes one orders, and its writes count only while it
// holds the lock; a failure is known to all nodes, which wait together before the
// next order; no connection and no transaction is held while an authority is
// talked to; each call to the database has a deadline.
//
// docs/certificates.md has the states of a certificate and what each failure does.
package acme
