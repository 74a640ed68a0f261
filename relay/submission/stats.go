package submission

import "sync/atomic"

// counters are what the server counts from its start on.
type counters struct {
	sessions           atomic.Int64
	refusedConnections atomic.Int64
	proxyRefused       atomic.Int64
	acceptErrors       atomic.Int64
	handshakeFailures  atomic.Int64
	authSucceeded      atomic.Int64
	authFailed         atomic.Int64
	refusedSessions    atomic.Int64
	revoked            atomic.Int64
	accepted           atomic.Int64
	refusedMessages    atomic.Int64
	refusedRecipients  atomic.Int64
	violations         atomic.Int64
	panics             atomic.Int64
}

// Stats is a moment's view of a Server, for metrics.
type Stats struct {
	Open               int   // sessions now
	Sessions           int64 // ever
	RefusedConnections int64 // over a connection limit
	ProxyRefused       int64 // to a PROXY listener: from no load balancer of it, or without a good header
	AcceptErrors       int64
	HandshakeFailures  int64
	AuthSucceeded      int64
	AuthFailed         int64
	RefusedSessions    int64 // right passwords, but too many sessions at once
	Revoked            int64 // sessions ended because their credential worked no more
	Accepted           int64 // messages answered 250
	RefusedMessages    int64 // messages refused after their data was read
	RefusedRecipients  int64
	Violations         int64 // injection and smuggling attempts, and octets sent out of turn
	Panics             int64 // sessions that ended by a defect of ours
	Memory             int64 // octets of bodies in memory
	TempFiles          int64 // octets of bodies in temporary files
}

// Stats returns the counts of now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := len(s.sessions)
	s.mu.Unlock()
	c := &s.counts
	return Stats{
		Open:               open,
		Sessions:           c.sessions.Load(),
		RefusedConnections: c.refusedConnections.Load(),
		ProxyRefused:       c.proxyRefused.Load(),
		AcceptErrors:       c.acceptErrors.Load(),
		HandshakeFailures:  c.handshakeFailures.Load(),
		AuthSucceeded:      c.authSucceeded.Load(),
		AuthFailed:         c.authFailed.Load(),
		RefusedSessions:    c.refusedSessions.Load(),
		Revoked:            c.revoked.Load(),
		Accepted:           c.accepted.Load(),
		RefusedMessages:    c.refusedMessages.Load(),
		RefusedRecipients:  c.refusedRecipients.Load(),
		Violations:         c.violations.Load(),
		Panics:             c.panics.Load(),
		Memory:             s.spool.memory.used.Load(),
		TempFiles:          s.spool.files.used.Load(),
	}
}
