// Package suppression keeps the addresses that get no more mail of a user, or of all users
// (docs/suppression.md). No other package knows the table suppression.
//
// A List is a node's view. It has in memory which addresses have an entry of any user, at most two
// seconds late, and asks the database about those only. While it cannot follow the table, it asks about
// every address. So an entry is found within that time, and none is ever made up. Bounces and deliveries
// change entries in the transaction that settles them: an outcome that is fenced off changes nothing,
// and one that is written twice changes an entry once. Admins have a Store. Each change is an event of
// the feed, in its transaction.
package suppression
