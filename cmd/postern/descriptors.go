package main

import "syscall"

// Descriptors that are not for clients: ownDescriptors of the process itself
// (listeners, log, database), and beyond them a quarter of what it may open, for
// deliveries and the temporary files of messages.
const ownDescriptors = 64

// clientDescriptors is how many connections of clients the process may have open
// without taking from its own work what that needs, or 0 when it cannot be told.
// The runtime has raised the soft limit to the hard one already.
func clientDescriptors() int {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return clientShare(uint64(limit.Cur))
}

func clientShare(descriptors uint64) int {
	descriptors = min(descriptors, 1<<30) // RLIM_INFINITY
	return max(1, int(descriptors)-int(descriptors/4)-ownDescriptors)
}

// connections is how many clients may be connected at once: as configured, or what
// the limit of open files leaves to them. A server without a descriptor left can
// neither deliver nor reach its database.
func (n *node) connections() int {
	want := n.cfg.Submission.Connections
	most := clientDescriptors()
	if most == 0 || want <= most {
		return want
	}
	n.log.Warn("fewer connections than configured: the limit of open files is too low (ulimit -n, LimitNOFILE)",
		"configured", want, "connections", most)
	return most
}
