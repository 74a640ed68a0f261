// Package refused tells the feed of events (docs/events.md) of recipients that were refused for good.
//
// A Counter counts them in memory, and writes an event a minute for each user and address. So a
// refusal costs RCPT no query, and a client that is refused again and again fills no table. The
// counts of the last minute are lost when the node is killed.
package refused
