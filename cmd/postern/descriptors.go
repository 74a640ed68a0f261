package main

import (
	"fmt"
	"strings"
	"syscall"
)

const (
	// ownDescriptors are those of the process itself: listeners, log, and the database with
	// plainDatabase connections in its pools.
	ownDescriptors = 64
	plainDatabase  = 8
	// openDeliveries is how many connections to destinations there may be when descriptors
	// are plenty, the default of relay/delivery. Each takes two descriptors: its lookups ask for A and AAAA
	// concurrently.
	openDeliveries = 500
)

// descriptors is what a process may have open of each kind.
type descriptors struct {
	connections int // of clients
	deliveries  int // to destinations
	files       int // temporary ones, of messages; 0: any number
	database    int // connections of the pools
}

// fit reduces what is configured to a limit of open files, 0 for an unknown one.
// A server without a descriptor left can neither deliver nor reach its database.
func (c *config) fit(limit uint64) descriptors {
	want := c.wanted()
	if limit == 0 {
		return want
	}
	all := int(min(limit, 1<<30)) // RLIM_INFINITY
	d := descriptors{database: min(want.database, max(2, all/8))}
	own := ownDescriptors + max(0, d.database-plainDatabase)
	// A quarter is for deliveries and files, whatever clients do.
	d.connections = min(want.connections, max(1, all-all/4-own))
	left := all - own - d.connections
	d.deliveries = min(want.deliveries, max(1, left/3))
	d.files = max(1, left-2*d.deliveries)
	return d
}

// wanted is what is configured.
func (c *config) wanted() descriptors {
	d := descriptors{deliveries: openDeliveries, database: c.Database.MaxConnections}
	if len(c.Listeners) > 0 {
		d.connections = c.Submission.Connections
	}
	return d
}

// cuts says what a limit of open files takes from what is configured, "" for nothing.
func (c *config) cuts(d descriptors) string {
	want := c.wanted()
	var list []string
	for _, of := range []struct {
		what      string
		has, want int
	}{{"connections", d.connections, want.connections}, {"deliveries", d.deliveries, want.deliveries}, {"connections of the database", d.database, want.database}} {
		if of.has < of.want {
			list = append(list, fmt.Sprintf("%d %s of %d", of.has, of.what, of.want))
		}
	}
	return strings.Join(list, ", ")
}

// openLimit is how many files the process may have open, 0 when that is unknown. The
// runtime has raised the soft limit to the hard one already.
func openLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur)
}

// descriptors are those that this node may have open. It logs what was cut, once.
func (n *node) descriptors() descriptors {
	d := n.cfg.fit(openLimit())
	if cuts := n.cfg.cuts(d); cuts != n.cuts {
		if n.cuts = cuts; cuts != "" {
			n.log.Warn("fewer connections than configured: the limit of open files is too low (ulimit -n, LimitNOFILE)",
				"cut", cuts, "connections", d.connections, "deliveries", d.deliveries, "files", d.files, "database", d.database)
		}
	}
	return d
}
