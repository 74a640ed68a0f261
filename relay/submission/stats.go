package submission

import "sync/atomic"

// counters count from the start of the server.
type counters struct {
	sessions          atomic.Int64
	refusedByServer   atomic.Int64 // connections, over the limit of all
	refusedByAddress  atomic.Int64
	refusedByProxy    atomic.Int64
	acceptErrors      atomic.Int64
	handshakeFailures atomic.Int64
	authSucceeded     atomic.Int64
	authFailed        atomic.Int64
	refusedSessions   atomic.Int64
	revoked           atomic.Int64
	expelled          atomic.Int64
	accepted          atomic.Int64
	refusedMessages   atomic.Int64
	refusedRecipients atomic.Int64
	suppressed        atomic.Int64
	violations        atomic.Int64
	panics            atomic.Int64
}

func (c *counters) refused(full crowd) {
	if full == fullNetwork {
		c.refusedByAddress.Add(1)
		return
	}
	c.refusedByServer.Add(1)
}

// Stats is a moment's view of a Server, for metrics.
type Stats struct {
	Open               int   // sessions now
	Sessions           int64 // ever
	RefusedConnections int64 // over the limit of connections in all
	RefusedByAddress   int64 // over the limit of one address
	RefusedByProxy     int64 // of a PROXY listener: from no load balancer of it, or without a good header
	AcceptErrors       int64
	HandshakeFailures  int64
	AuthSucceeded      int64
	AuthFailed         int64
	RefusedSessions    int64 // right passwords, but too many sessions
	Revoked            int64 // sessions ended because their credential was no longer valid
	Expelled           int64 // sessions that gave way while others had no room
	Accepted           int64 // messages answered 250
	RefusedMessages    int64 // messages refused after their data was read
	RefusedRecipients  int64
	Suppressed         int64 // recipients that were refused, or are to fail, by the suppression list
	Violations         int64 // attempted injection and smuggling, and octets sent out of turn
	Panics             int64 // sessions that ended by a defect of ours
	Memory             int64 // octets of messages in memory: bodies, long headers, long envelopes
	MemoryLimit        int64
	TempFiles          int64 // octets of bodies in temporary files
	TempFilesLimit     int64
	MessageSize        int64 // of the largest that a new session may bring
}

// Stats returns the counts of now.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	open := len(s.sessions)
	s.mu.Unlock()
	memory, memoryLimit := s.spool.memory.Use()
	files, filesLimit := s.spool.files.Use()
	c := &s.counts
	return Stats{
		Open:               open,
		Sessions:           c.sessions.Load(),
		RefusedConnections: c.refusedByServer.Load(),
		RefusedByAddress:   c.refusedByAddress.Load(),
		RefusedByProxy:     c.refusedByProxy.Load(),
		AcceptErrors:       c.acceptErrors.Load(),
		HandshakeFailures:  c.handshakeFailures.Load(),
		AuthSucceeded:      c.authSucceeded.Load(),
		AuthFailed:         c.authFailed.Load(),
		RefusedSessions:    c.refusedSessions.Load(),
		Revoked:            c.revoked.Load(),
		Expelled:           c.expelled.Load(),
		Accepted:           c.accepted.Load(),
		RefusedMessages:    c.refusedMessages.Load(),
		RefusedRecipients:  c.refusedRecipients.Load(),
		Suppressed:         c.suppressed.Load(),
		Violations:         c.violations.Load(),
		Panics:             c.panics.Load(),
		Memory:             memory,
		MemoryLimit:        memoryLimit,
		TempFiles:          files,
		TempFilesLimit:     filesLimit,
		MessageSize:        s.settings.Load().limits.MessageSize,
	}
}
