// Package refused writes events (docs/events.md) about recipients that were refused for good.
//
// A Counter counts them in memory, and once a minute writes an event for each user and address. So a
// refusal costs RCPT no query, and a client that is refused in a loop fills no table. A node that is
// killed loses the counts of the last minute.
package refused
