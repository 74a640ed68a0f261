// Package desk is the queue for people: it lists, traces and counts what is in its tables, and
// retries, holds, releases and cancels what no node has in hand.
//
// It needs nothing but the database: it works while no node runs, and what it changes is
// fenced as everything else. Each change is in the audit before the first row is changed, and
// each row that is changed has a line in its history.
package desk
