// Package explain answers, changing nothing, what would become of a message: whether it would
// be accepted, how much of each limit is used, and which way it would go.
package explain
