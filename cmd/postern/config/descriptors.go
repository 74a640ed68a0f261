package config

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

// Descriptors is what a process may have open of each kind.
type Descriptors struct {
	Connections int // of clients
	Deliveries  int // to destinations
	Files       int // temporary ones, of messages; 0: any number
	Database    int // connections of the pools
}

// Fit reduces what is configured to a limit of open files, 0 for an unknown one.
// A server without a descriptor left can neither deliver nor reach its database.
func (c *Config) Fit(limit uint64) Descriptors {
	want := c.wanted()
	if limit == 0 {
		return want
	}
	all := int(min(limit, 1<<30)) // RLIM_INFINITY
	d := Descriptors{Database: min(want.Database, max(2, all/8))}
	own := ownDescriptors + max(0, d.Database-plainDatabase)
	// A quarter is for deliveries and files, whatever clients do.
	d.Connections = min(want.Connections, max(1, all-all/4-own))
	left := all - own - d.Connections
	d.Deliveries = min(want.Deliveries, max(1, left/3))
	d.Files = max(1, left-2*d.Deliveries)
	return d
}

// wanted is what is configured.
func (c *Config) wanted() Descriptors {
	d := Descriptors{Deliveries: openDeliveries, Database: c.Database.MaxConnections}
	if len(c.Listeners) > 0 {
		d.Connections = c.Submission.Connections
	}
	return d
}

// Cuts says what a limit of open files takes from what is configured, "" for nothing.
func (c *Config) Cuts(d Descriptors) string {
	want := c.wanted()
	var list []string
	for _, of := range []struct {
		what      string
		has, want int
	}{{"connections", d.Connections, want.Connections}, {"deliveries", d.Deliveries, want.Deliveries}, {"connections of the database", d.Database, want.Database}} {
		if of.has < of.want {
			list = append(list, fmt.Sprintf("%d %s of %d", of.has, of.what, of.want))
		}
	}
	return strings.Join(list, ", ")
}

// OpenLimit is how many files the process may have open, 0 when that is unknown. The
// runtime has raised the soft limit to the hard one already.
func OpenLimit() uint64 {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0
	}
	return uint64(limit.Cur)
}

// NodeConnections is how many connections one node may open: those that are configured,
// and those of the queue, of what is noted of logins, of routes, of suppressions, of webhooks, of health and metrics,
// of certificates by ACME, and of what alerts by mail look at.
func (c *Config) NodeConnections() int {
	n := c.Database.MaxConnections + 17 + 3 + 1 + 2 + 2
	if c.Admin.Address != "" {
		n += AdminConnections
	}
	if c.ACME.On() {
		n += 3
	}
	if len(c.Alerts.Mail) > 0 {
		n += 2
	}
	return n
}

// AdminConnections is the connections of the admin pages: /readyz must not wait for the
// reading of a large queue.
const AdminConnections = 2
