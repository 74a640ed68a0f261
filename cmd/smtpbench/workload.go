package main

import (
	"strings"
	"time"
)

// A workload is a shape of load. A round of it is so many passes, each drained
// before the next one begins.
type workload struct {
	name        string
	what        string
	connections int
	messages    int // for each connection and pass
	size        int
	recipients  int
	reconnect   bool
	passes      int
	byName      bool          // not among those that are run by default
	slowDot     time.Duration // after which the sink answers the final dot
	untuned     bool          // beside a Postfix with its defaults
}

// workloads are those of docs/benchmark.md.
var workloads = []workload{
	{name: "burst", what: "20 connections × 100 messages of 5 KB", connections: 20, messages: 100, size: 5 << 10, recipients: 1, passes: 3},
	{name: "single", what: "one message of 5 KB for each connection, 20 concurrently", connections: 20, messages: 50, size: 5 << 10, recipients: 1, reconnect: true, passes: 1},
	{name: "many", what: "50 recipients, 20 connections, 5 KB", connections: 20, messages: 25, size: 5 << 10, recipients: 50, passes: 1},
	{name: "large", what: "10 MB, 8 connections", connections: 8, messages: 8, size: 10 << 20, recipients: 1, passes: 1},
	{name: "slow", what: "20 connections × 100 messages of 5 KB, the sink answers after 50 ms", connections: 20, messages: 100, size: 5 << 10, recipients: 1, passes: 1,
		slowDot: 50 * time.Millisecond, untuned: true, byName: true},
	{name: "smoke", what: "a few messages, to see that all works", connections: 2, messages: 5, size: 5 << 10, recipients: 3, passes: 2, byName: true},
	{name: "huge", what: "100 MB, 8 connections", connections: 8, messages: 1, size: 100 << 20, recipients: 1, passes: 1, byName: true},
}

// choose finds the workloads of those names; none means the usual ones.
func choose(names []string) ([]workload, error) {
	var chosen []workload
	for _, name := range names {
		found := false
		for _, w := range workloads {
			if w.name == name {
				chosen, found = append(chosen, w), true
			}
		}
		if !found {
			return nil, usagef("there is no workload %q: %s", name, workloadNames())
		}
	}
	if len(names) > 0 {
		return chosen, nil
	}
	for _, w := range workloads {
		if !w.byName {
			chosen = append(chosen, w)
		}
	}
	return chosen, nil
}

func workloadNames() string {
	var names []string
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return strings.Join(names, ", ")
}

// plan is one pass of the workload.
func (w workload) plan() plan {
	return plan{
		connections: w.connections, reconnect: w.reconnect,
		corpus: corpusConfig{
			from: benchUser, domain: "bench.example.net",
			messages: w.connections * w.messages, recipients: w.recipients, size: w.size,
		},
	}
}
