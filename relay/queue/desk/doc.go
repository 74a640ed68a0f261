// Package desk is the queue for people: it lists, traces and counts its rows, and retries,
// holds, releases, cancels and resolves those that no node has in hand.
//
// It needs only the database: it works while no node runs, and its changes are fenced like
// all others. Each change is in the audit before the first row is changed, and each changed
// row gets a line in its history.
package desk
