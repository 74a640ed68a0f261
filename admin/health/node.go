package health

import (
	"errors"

	"postern/relay/queue/reserve"
)

// The kinds of what is wrong with the database and with a node's lease in it.
var (
	Unreachable = Kind{"db.unreachable", Failed, "The database cannot be used.", "check that it runs, its port, and the user, password and name in the URL"}

	// Only a running node has a lease to lose, so 'postern check' knows none of these.
	noLease = Kind{"node.lease", Failed, "This node has no valid lease in the database, so it neither accepts nor delivers.",
		"see its log, the database, and that no other process has its node name"}
	stopping = Kind{"node.stopping", Failed, "The node is stopping.", "send clients to another node"}
)

// Database judges the answer of the database to a question.
func Database(err error) Finding {
	if err != nil {
		return Unreachable.Found("database", "%v", err)
	}
	return Finding{Status: OK, Subject: "database", Text: "the database answers"}
}

// Epoch judges why the queue of a node refuses mail; nil: it does not. A full disk is not
// the lease's.
func Epoch(refuses error) Finding {
	if refuses != nil && !errors.Is(refuses, reserve.ErrFull) {
		return noLease.Found("epoch", "%v", refuses)
	}
	return Finding{Status: OK, Subject: "epoch", Text: "this node's lease is valid"}
}

// Disk judges why the queue of a node refuses mail: its database's disk may be full.
func Disk(refuses error) Finding {
	if errors.Is(refuses, reserve.ErrFull) {
		return DiskFull.Found("disk", "%v", reserve.ErrFull)
	}
	return Finding{Status: OK, Subject: "disk", Text: "there is room for mail"}
}

// Drain judges a node that is stopping, so that no new clients are sent to it.
func Drain(is bool) Finding {
	if is {
		return stopping.Found("draining", "this node is stopping")
	}
	return Finding{Status: OK, Subject: "draining", Text: "this node takes mail"}
}
