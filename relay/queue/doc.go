// Package queue is the durable queue of accepted messages in Postgres: it accepts them, owns
// them while they are sent, and settles their outcomes. Nothing else writes live mail while a
// node has it. Beside it are desk (people), relay/retention and relay/anomaly, below it insert
// (the rows of a group commit), content (the octets of messages) and reserve (room on the disk):
// docs/decisions/queue-parts.md.
//
// It promises: Enqueue returns nil only after a durable commit; a recipient is
// owned by at most one live epoch; every outcome is written fenced by the epoch
// that produced it; accepted mail ends as delivered, as failed with its notice, or by
// an operator's recorded act. docs/queue-states.md lists every
// state of a recipient row and what a crash in it means.
//
// The statements are whole in the .sql files, by the name of the Go file that runs them.
//
// It speaks no SMTP and dials no one, and holds no transaction, lock or pooled connection
// while others do.
package queue
