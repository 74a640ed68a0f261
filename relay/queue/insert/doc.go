// Package insert writes accepted messages into the tables of the queue: a Group of them by one
// statement, with the keys of their duplicates and the charges of their limits. It has the nouns of
// that, Message, Recipient and Key.
//
// It runs what it is told on a connection that it is given. relay/queue makes up the groups, tries
// again, and decides what an error means.
package insert
