// Package admin is what a node tells of itself over HTTP: /healthz, /readyz, /metrics
// and, when asked for, /debug/pprof. docs/metrics.md has the pages and every metric.
//
// It promises: it changes nothing; a page is answered within seconds whatever the
// database does, and costs the database at most one query in a while; a reader of a
// page waits for no mail and keeps no mail waiting; how many series there are does not
// depend on what clients and servers say, for no user, address or domain is a label.
//
// It knows mail by maillog's events and the queue by its observer and its Reader. What
// else is told comes as functions: a Check is one question of /readyz, Readings are the
// numbers of some part of the node.
package admin
