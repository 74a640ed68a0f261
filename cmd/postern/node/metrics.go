package node

import (
	"runtime"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"postern/admin"
	"postern/admin/health"
	"postern/auth"
	"postern/relay/delivery"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/resolver"
	"postern/relay/submission"
)

// metrics is the registry of the node. docs/metrics.md has every metric.
type metrics struct {
	registry *prometheus.Registry
	queue    queue.Observer
}

// observe lets the metrics hear of mail and of the queue's work, unless nobody is to
// see them. It comes before anything is built that tells them.
func (n *Node) observe() {
	if n.Config.Admin.Address == "" {
		return
	}
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "postern_build_info", Help: "1, with the version of Postern and of Go as labels."}, []string{"version", "go"})
	build.WithLabelValues(n.Version, runtime.Version()).Set(1)
	r.MustRegister(build)
	n.metrics = &metrics{registry: r, queue: admin.QueueObserver(r)}
	n.mail = maillog.New(n.Log).Observed(admin.MailObserver(r))
}

func (m *metrics) queueObserver() queue.Observer {
	if m == nil {
		return queue.Observer{}
	}
	return m.queue
}

func (m *metrics) registerDraining(draining *atomic.Bool) {
	admin.Register(m.registry, nil, draining.Load, []admin.Reading[bool]{
		{Name: "postern_draining", Help: "1 while the node is stopping, else 0.", Value: admin.Truth},
	})
}

// registerParts adds what the parts of the node count themselves.
func (n *Node) registerParts() {
	r := n.metrics.registry
	admin.Register(r, nil, n.queue.Stats, admin.QueueStats())
	admin.Register(r, nil, n.guard.Caught, []admin.Reading[int64]{
		{Name: "postern_panics_total", Help: "Defects of Postern that were met outside of sessions and attempts, and survived.", Counter: true, Value: number[int64]},
	})
	admin.Register(r, nil, n.marker.HeldFor, []admin.Reading[time.Duration]{
		{Name: "postern_feed_held_seconds", Help: "For how long a transaction that is open has held back the feed of events.", Value: time.Duration.Seconds},
	})
	admin.RegisterDKIM(r, n.signing.ring.List)
	n.suppressing.register(r)
	n.alerting.register(r)
	if n.front != nil {
		n.front.register(r)
	}
	if n.back != nil {
		n.back.register(r)
	}
	for _, p := range n.pools {
		admin.Register(r, prometheus.Labels{"pool": p.name}, p.Stat, poolReadings)
	}
}

func (f *front) register(r *prometheus.Registry) {
	admin.RegisterCertificates(r, f.certificateList)
	admin.Register(r, nil, f.server.Stats, submissionReadings)
	admin.Register(r, prometheus.Labels{"reason": "address"}, func() int64 { return f.server.Stats().RefusedByAddress }, refusedReadings)
	admin.Register(r, prometheus.Labels{"reason": "server"}, func() int64 { return f.server.Stats().RefusedConnections }, refusedReadings)
	admin.Register(r, prometheus.Labels{"reason": "proxy"}, func() int64 { return f.server.Stats().RefusedByProxy }, refusedReadings)
	admin.Register(r, nil, f.verifier.Stats, authReadings)
	dir := f.node.Config.Submission.TempDir()
	admin.Register(r, nil, func() int64 { free, _ := health.FreeSpace(dir); return free }, []admin.Reading[int64]{
		{Name: "postern_spool_free_bytes", Help: "Octets that may still be written into the folder for temporary files; 0 when it cannot be asked.", Value: number[int64]},
	})
}

func (b *back) register(r *prometheus.Registry) {
	admin.RegisterUpstreamSecrets(r, b.secrets.list)
	admin.RegisterUpstreamBreakers(r, b.breakers.States)
	admin.RegisterUpstreamBudgets(r, b.used.list)
	b.registerWebhooks(r)
	admin.Register(r, nil, b.engine.Stats, deliveryReadings)
	registerDNS(r, b.dns)
	admin.RegisterEach(r, []string{"upstream"}, b.engine.Windows, func(w delivery.Window) []string { return []string{w.Upstream} }, windowReadings)
	admin.RegisterEach(r, []string{"domain"}, b.engine.Unsigned, func(u delivery.Unsigned) []string { return []string{u.Domain} }, unsignedReadings)
	admin.Register(r, prometheus.Labels{"via": "upstream"}, func() delivery.Load { return b.engine.Stats().Upstream }, loadReadings)
	admin.Register(r, prometheus.Labels{"via": "mx"}, func() delivery.Load { return b.engine.Stats().MX }, loadReadings)
}

func registerDNS(r *prometheus.Registry, dns *resolver.Resolver) {
	admin.Register(r, nil, dns.Stats, dnsReadings)
	admin.Register(r, prometheus.Labels{"outcome": "answer"}, func() int64 { return dns.Stats().Answered }, questionReadings)
	admin.Register(r, prometheus.Labels{"outcome": "none"}, func() int64 { return dns.Stats().None }, questionReadings)
	admin.Register(r, prometheus.Labels{"outcome": "temporary"}, func() int64 { return dns.Stats().Temporary }, questionReadings)
}

func number[N int | int32 | int64](n N) float64 { return float64(n) }

// of reads one number of a part's stats.
func of[T any, N int | int32 | int64](value func(T) N) func(T) float64 {
	return func(t T) float64 { return float64(value(t)) }
}

var submissionReadings = []admin.Reading[submission.Stats]{
	{Name: "postern_sessions_open", Help: "Sessions of clients now.", Value: of(func(s submission.Stats) int { return s.Open })},
	{Name: "postern_sessions_total", Help: "Sessions that were opened.", Counter: true, Value: of(func(s submission.Stats) int64 { return s.Sessions })},
	{Name: "postern_sessions_revoked_total", Help: "Sessions that were ended because their credential works no more.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.Revoked })},
	{Name: "postern_sessions_gave_way_total", Help: "Sessions that were ended while others had no room: clients that had not logged in, and messages that crawled.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.Expelled })},
	{Name: "postern_accept_errors_total", Help: "Connections that could not be taken, for want of file descriptors or memory.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.AcceptErrors })},
	{Name: "postern_tls_handshake_failures_total", Help: "TLS handshakes with clients that failed.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.HandshakeFailures })},
	{Name: "postern_recipients_suppressed_total", Help: "Recipients that were refused, or accepted to fail, because of the suppression list.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.Suppressed })},
	{Name: "postern_protocol_violations_total", Help: "Attempts at injection and smuggling, and octets that came out of turn.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.Violations })},
	{Name: "postern_session_panics_total", Help: "Sessions that ended by a defect of Postern.", Counter: true,
		Value: of(func(s submission.Stats) int64 { return s.Panics })},
	{Name: "postern_spool_memory_bytes", Help: "Octets of message bodies in memory.", Value: of(func(s submission.Stats) int64 { return s.Memory })},
	{Name: "postern_spool_memory_limit_bytes", Help: "The most that message bodies in memory may take, [submission] memory.", Value: of(func(s submission.Stats) int64 { return s.MemoryLimit })},
	{Name: "postern_spool_files_bytes", Help: "Octets of message bodies in temporary files.", Value: of(func(s submission.Stats) int64 { return s.TempFiles })},
	{Name: "postern_spool_files_limit_bytes", Help: "The most that message bodies in temporary files may take, [submission] spool.", Value: of(func(s submission.Stats) int64 { return s.TempFilesLimit })},
}

var refusedReadings = []admin.Reading[int64]{
	{Name: "postern_sessions_refused_total", Help: "Connections that were turned away because there were too many, from one address or in all, or at a listener with proxy_protocol without a good header from a load balancer of it.", Counter: true, Value: number[int64]},
}

var authReadings = []admin.Reading[auth.Stats]{
	{Name: "postern_hash_permits", Help: "Password hashes that may be computed concurrently, [auth] permits.", Value: of(func(s auth.Stats) int { return s.Permits })},
	{Name: "postern_hash_running", Help: "Password hashes that are computed now.", Value: of(func(s auth.Stats) int { return s.Hashing })},
	{Name: "postern_hash_waiting", Help: "Password hashes that wait for a permit.", Value: of(func(s auth.Stats) int { return s.Waiting })},
	{Name: "postern_hash_total", Help: "Password hashes computed.", Counter: true, Value: of(func(s auth.Stats) int64 { return s.Hashes })},
	{Name: "postern_hash_wait_seconds_total", Help: "Seconds that password hashes have waited for permits, all together.", Counter: true,
		Value: func(s auth.Stats) float64 { return s.Waited.Seconds() }},
	{Name: "postern_hash_busy_total", Help: "Password hashes that got no permit in time; their logins got 454.", Counter: true,
		Value: of(func(s auth.Stats) int64 { return s.Busy })},
	{Name: "postern_secrets_compared_total", Help: "Generated secrets that were compared, which take no permit.", Counter: true,
		Value: of(func(s auth.Stats) int64 { return s.Secrets })},
	{Name: "postern_auth_cache_hits_total", Help: "Logins that were answered from what was verified before.", Counter: true,
		Value: of(func(s auth.Stats) int64 { return s.CacheHits })},
	{Name: "postern_auth_cache_misses_total", Help: "Logins that took a look-up and a hash.", Counter: true,
		Value: of(func(s auth.Stats) int64 { return s.CacheMisses })},
	{Name: "postern_auth_cache_entries", Help: "Verified passwords that are remembered.", Value: of(func(s auth.Stats) int { return s.Cached })},
	{Name: "postern_auth_throttle_entries", Help: "Counts of failed logins that are held, of networks and accounts.", Value: of(func(s auth.Stats) int { return s.Throttled })},
}

var deliveryReadings = []admin.Reading[delivery.Stats]{
	{Name: "postern_delivery_messages", Help: "Messages that the delivery holds in memory.", Value: of(func(s delivery.Stats) int { return s.Messages })},
	{Name: "postern_delivery_memory_bytes", Help: "Octets of the messages that the delivery holds in memory.", Value: of(func(s delivery.Stats) int64 { return s.Memory })},
	{Name: "postern_delivery_memory_limit_bytes", Help: "The most that the messages in memory for delivery may take, [delivery] memory.", Value: of(func(s delivery.Stats) int64 { return s.MemoryLimit })},
	{Name: "postern_dkim_signed_total", Help: "Transactions with a message that was signed.", Counter: true, Value: of(func(s delivery.Stats) int64 { return s.Signed })},
	{Name: "postern_delivery_panics_total", Help: "Attempts that ended by a defect of Postern.", Counter: true, Value: of(func(s delivery.Stats) int64 { return s.Panics })},
}

var unsignedReadings = []admin.Reading[delivery.Unsigned]{
	{Name: "postern_dkim_unsigned_total", Help: "Transactions with a message of a user that was not signed although its way signs, by the domain of its envelope's sender: its author's domain has no key for it, or had none when the message was accepted.", Counter: true,
		Value: of(func(u delivery.Unsigned) int64 { return u.Transactions })},
}

var questionReadings = []admin.Reading[int64]{
	{Name: "postern_dns_questions_total", Help: "Questions that name servers were asked, by their outcome.", Counter: true, Value: number[int64]},
}

var dnsReadings = []admin.Reading[resolver.Stats]{
	{Name: "postern_dns_seconds_total", Help: "Seconds that questions to name servers took, all together.", Counter: true, Value: func(s resolver.Stats) float64 { return s.Time.Seconds() }},
	{Name: "postern_dns_cache_hits_total", Help: "Questions about names that were answered from memory.", Counter: true, Value: of(func(s resolver.Stats) int64 { return s.Kept })},
	{Name: "postern_dns_cache_entries", Help: "Answers of name servers in memory.", Value: of(func(s resolver.Stats) int { return s.Entries })},
	{Name: "postern_dns_validates", Help: "1 while the name servers are trusted and have proved that they validate DNSSEC, so that DANE is on, else 0.",
		Value: func(s resolver.Stats) float64 { return admin.Truth(s.Validates) }},
	{Name: "postern_dns_servers_blind", Help: "Trusted name servers that do not validate DNSSEC.", Value: of(func(s resolver.Stats) int { return s.Blind })},
}

var windowReadings = []admin.Reading[delivery.Window]{
	{Name: "postern_upstream_connections", Help: "Connections of this node to an upstream, open or being made.", Value: of(func(w delivery.Window) int { return w.Connections })},
	{Name: "postern_upstream_window", Help: "The most connections that this node now opens to an upstream.", Value: of(func(w delivery.Window) int { return w.Places })},
}

var loadReadings = []admin.Reading[delivery.Load]{
	{Name: "postern_destinations", Help: "Destinations with work, or remembered for their failures, by class.", Value: of(func(l delivery.Load) int { return l.Destinations })},
	{Name: "postern_destinations_suspended", Help: "Destinations that are not used for now after failures, by class.", Value: of(func(l delivery.Load) int { return l.Suspended })},
	{Name: "postern_delivery_waiting", Help: "Messages that wait for a connection to their destination, by class.", Value: of(func(l delivery.Load) int { return l.Waiting })},
	{Name: "postern_delivery_connections", Help: "Connections to destinations, open or being made, by class.", Value: of(func(l delivery.Load) int { return l.Connections })},
}

var poolReadings = []admin.Reading[*pgxpool.Stat]{
	{Name: "postern_database_connections", Help: "Connections of a pool, open or being made.", Value: of((*pgxpool.Stat).TotalConns)},
	{Name: "postern_database_connections_used", Help: "Connections of a pool that are in use.", Value: of((*pgxpool.Stat).AcquiredConns)},
	{Name: "postern_database_connections_limit", Help: "The most that a pool may open.", Value: of((*pgxpool.Stat).MaxConns)},
	{Name: "postern_database_acquires_total", Help: "Times that a connection was taken from a pool.", Counter: true, Value: of((*pgxpool.Stat).AcquireCount)},
	{Name: "postern_database_waits_total", Help: "Times that a connection had to be waited for because none of the pool was free.", Counter: true, Value: of((*pgxpool.Stat).EmptyAcquireCount)},
	{Name: "postern_database_wait_seconds_total", Help: "Seconds of waiting for connections of a pool, all together.", Counter: true,
		Value: func(s *pgxpool.Stat) float64 { return s.EmptyAcquireWaitTime().Seconds() }},
	{Name: "postern_database_acquires_given_up_total", Help: "Times that a wait for a connection of a pool was given up.", Counter: true, Value: of((*pgxpool.Stat).CanceledAcquireCount)},
}
