// Package suppression keeps the addresses that get no more mail of a user, or of anybody
// (docs/suppression.md): it is the one that knows the table suppression.
//
// A List is a node's view. It knows in memory which addresses have an entry of somebody, at most
// two seconds late, and asks the database only about those; what it cannot know it asks too, so an
// entry is missed by no more than that time, and none is ever made up. Bounces and deliveries change
// entries in the transaction that settles them: an outcome that is fenced off changes nothing, and
// one that is written twice changes an entry once. A Store is the admins'.
// Each change is an event of the feed, in its transaction.
package suppression
