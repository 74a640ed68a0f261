// Package keys has the DKIM keys of sender domains, and their life.
//
// Job: make keys, and keep them with their private halves sealed (relay/seal) in the table
// dkim_key; look whether their records are published; say which keys sign for a domain now
// (Ring.Keys); and for an admin list, add, rotate, retire and remove keys.
//
// A key goes through these states:
//
//   - pending: an admin has to publish its record. It signs nothing.
//   - active: it signs. It became so when all authoritative servers of its domain had answered
//     the record in two looks, one after the other. The key of the same algorithm that signed
//     before is retiring then.
//   - retiring: it signs no more, but mail that it has signed is on its way. The record must stay.
//   - retired: its private half is deleted, and the record may go. When it has gone, so does the key.
//
// Rotation: a domain may have an age for its keys. A while before an active key has it, the next one
// is made, pending. Until that is published the old one signs.
//
// Invariants: a key signs only after its record was seen at all servers twice, and not when two
// looks have found it at none; then a retiring key whose record is there signs instead, or none. One
// node of all looks at a domain, by a lease that is fenced by its number; no connection to the
// database is held meanwhile. Each act of an admin is in the audit, in its transaction. States and
// leases go by the database's clock.
//
// Failure: while the database does not answer, a node signs with the keys that it knows. Servers that
// do not answer change nothing about a key that signs. A private half that this node cannot
// open signs nothing here, which is logged once. Crash: what a node was looking at, another
// node looks at after the lease.
package keys
