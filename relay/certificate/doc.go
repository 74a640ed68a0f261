// Package certificate holds what the listeners show in a TLS handshake: files that
// are read again when they change, certificates that an ACME authority (RFC 8555)
// issues and that all nodes share through the database, and a self-signed one for
// trying out or as a stand-in until the first is issued.
//
// Set chooses by the name that the client asks for (SNI). It answers from memory: a
// handshake waits for no file that is gone, no database and no authority.
//
// Keeper gets and renews. Ordering, renewal times (ARI, RFC 9773) and OCSP stapling
// are certmagic's; when it is tried, how often, and what is told about it are ours.
// Storage is certmagic's storage in Postgres: values are sealed, a lock is a row with
// a lease and a fencing token, and a certificate, its key and its metadata change in
// one statement, so that no crash leaves a key beside another's certificate.
//
// Invariants: of several nodes one orders, and what it writes counts only while it
// holds the lock; a failure is known to all nodes, which wait together before the
// next attempt; no connection and no transaction is held while an authority is
// talked to; each call to the database has a deadline. Trouble with an authority,
// the database or a file never takes away a certificate that is in memory.
//
// docs/certificates.md has the states of a certificate and what each failure does.
package certificate
