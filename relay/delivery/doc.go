// Package delivery sends queued messages to upstreams and to the MX of their
// recipients.
//
// Job: an Engine takes deliveries from memory (Take) and from the queue (Claim),
// resolves each recipient's route, splits a message into jobs of one destination
// each, sends them over few, reused connections, and settles the outcome of every
// recipient. A destination is one upstream or one MX domain. It has its own
// waiting jobs, its own connections and its own back-off, so a slow or dead one
// takes nothing from another but its bounded share of memory.
//
// Invariants: every recipient of every Delivery that was taken is settled or
// released exactly once, and its body dropped once; the final dot is sent only
// after the queue's Gate allowed it; connections, waiting jobs and the memory that they
// hold are bounded.
//
// Failure: what a server says about a recipient concerns that recipient, unless the table of the
// upstream (relay/upstream) says that our account or the server is at fault: then the mail waits.
// Trouble to get a conversation going (relay/connect) concerns the destination: it is left alone
// for a while and its waiting mail is deferred, never failed, even after a 5yz. (RFC 5321 section
// 3.1 would let a 554 greeting fail the mail; a server under repair says 554 too, and the mail
// expires on its own.) A reply that is not understood defers. A final dot without a complete reply
// is recorded as unknown.
//
// It reads and writes no database; the interfaces Queue, Breakers, Budgets and connect.Tokens have
// all that it needs of one.
package delivery
