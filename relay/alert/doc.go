// Package alert mails what is wrong to the people who run Postern (docs/alerts.md).
//
// Job: each node writes down what it finds wrong with itself, its database and its upstreams; one of
// the nodes writes a mail of what all have found, when something new is there, again while it stays,
// and when all is well again. It judges nothing: the findings are those of 'postern check'.
//
// Invariants: over all nodes there is at most one mail an hour; a mail and the record that it was sent
// are one transaction, so a crash neither loses nor doubles one; a mail has the null sender, so nobody
// is told if it cannot be delivered.
//
// Failure: after an error of the database, a node tries again at the next look. A mail goes by the queue
// like other mail, and waits as long as its way is closed.
package alert
