// Package retention deletes data whose time is over: the octets of large messages, the history
// of finished mail, events, dead epochs, holds that hold nothing, and the counts of limits and of
// anomaly detection.
//
// It deletes nothing of a message that has a recipient left. docs/retention.md lists every
// table and its time.
package retention
