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

// nodeConnections is how many connections one node may open: those that are configured,
// and those of the queue, of what is noted of logins, of routes, of health and metrics,
// and of certificates by ACME.
func (c *config) nodeConnections() int {
	n := c.Database.MaxConnections + 17 + 3 + 1
	if c.Admin.Address != "" {
		n += adminPool
	}
	if c.ACME.on() {
		n += 3
	}
	return n
}

// adminPool is the connections of the admin pages: /readyz must not wait for the
// reading of a large queue.
const adminPool = 2
