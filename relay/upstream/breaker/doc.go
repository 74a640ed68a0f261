// Package breaker has the state of each upstream that all nodes share: closed, open, or
// half-open while one of them probes.
//
// Job: hear from the deliveries of a node that an upstream is to be left alone (Open), may have to
// be (Suspect), or works (Works); keep that in the table upstream_breaker; have an open upstream
// probed when that is due, and a message let through where no probe comes (Admit); and know the
// states of all (State). relay/delivery judges refusals and mail.
//
// Invariants: one node of all probes an upstream, by a lease on its row that the database's
// clock ends; no connection to the database is held meanwhile; only a delivery or a probe that knew a
// state ends it; nothing is written for a message or a connection, but for the first
// that changes the state; State asks no database.
//
// Failure: while the database does not answer, changes are kept and written later, and after ten
// seconds all states count as closed: a node goes by what it knows itself.
package breaker
