// Package anomaly holds a user whose mail looks like an attacker's: the queue reports accepted
// mail and ended attempts to it, it counts them by the hour across all nodes, and when a sign
// that an admin has turned on trips, all mail of the user waits for a person.
//
// It refuses nothing and delays nobody; without signs it counts nothing.
package anomaly
