// Package admin serves a node's health and metrics over HTTP: /healthz, /readyz, /metrics
// and, if configured, /debug/pprof. docs/metrics.md has the pages and every metric.
//
// It promises: it changes nothing; a page is answered within seconds whatever the
// database does, and costs the database at most one query in a while; reading a page waits
// for no mail and delays none; the number of series does not depend on what clients and
// servers say: no user or address is a label, and at most a hundred domains that users choose.
//
// It counts mail by maillog's events and the queue by its observer and its Reader. The rest
// comes as functions: a Check answers one question of /readyz, Readings are the numbers of
// some part of the node.
package admin
