// Package breaker has the state of each upstream that all nodes share: closed, open, or
// half-open while one of them probes.
//
// Job: take from the deliveries of a node that an upstream is to be left alone (Open), might
// have to be (Suspect), or works (Works), keep that in the table upstream_breaker, have an open
// one probed when it is due, and know the states of all (State). It judges no refusal and no mail:
// that is relay/delivery's.
//
// Invariants: one node of all probes an upstream, by a lease on its row that the database's
// clock ends; no connection to the database is held meanwhile; a state ends only by a delivery
// or a probe that knew it; nothing is written for a message or a connection, but for the first
// that changes the state; State asks no database.
//
// Failure: while the database does not answer, changes are kept and written later, and after ten
// seconds all states count as closed: a node goes by what it knows itself.
package breaker
