// Package retention deletes what is kept for a time only: the octets of large messages, finished
// mail's history, dead epochs, holds that hold nothing, and what limits and anomaly have counted.
//
// It deletes nothing of a message that has a recipient left. docs/retention.md lists every
// table and its time.
package retention
