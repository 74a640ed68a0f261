// Package feed reads what became of mail, and of users, upstreams and keys, as one sequence of
// events: docs/events.md.
//
// Job: pages of the rows of message, history, audit and event, in the order of their transactions'
// numbers, up to the oldest transaction that is open; cursors that stay right when the database
// was restored, promoted or set back; the marks for them. It changes no row of mail.
//
// Invariants: a reader that goes on behind the cursor of the last event that it has handled gets
// every event at least once, and none that was not committed; an event has the same id each time; a
// page is bounded in rows and octets, whatever one transaction has written.
//
// Failure: [Read] returns the database's error and nothing else, or [GoneError] when retention has
// deleted events behind the cursor.
package feed
