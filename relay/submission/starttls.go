package submission

import (
	"context"
	"crypto/tls"
	"log/slog"

	"postern/relay/smtp"
)

// startTLS is STARTTLS (RFC 3207). As an extension it needs EHLO.
func (s *session) startTLS(args string) smtp.Reply {
	switch {
	case args != "":
		return smtp.Permanent(501, 5, 4, "STARTTLS takes no arguments")
	case s.secured != "":
		return smtp.Permanent(503, 5, 1, "TLS is active already")
	case !s.esmtp:
		return smtp.Permanent(503, 5, 1, "Send EHLO first")
	case s.reader.Buffered() > 0:
		// Somebody on the path may have put these octets there for us to take as
		// part of the protected session (CVE-2011-0411).
		s.violation("octets behind STARTTLS")
		s.leave("injection", smtp.Permanent(554, 5, 0, "Octets behind STARTTLS, closing connection"))
		return smtp.Reply{}
	}
	s.wire.reply(smtp.OK(220, 0, 0, "Ready to start TLS"))
	if s.wire.flush() != nil {
		s.end("write failed")
		return smtp.Reply{}
	}
	s.handshake()
	return smtp.Reply{}
}

// handshake secures the connection. Nothing that was learnt in clear is kept
// (RFC 3207 section 4.2). If it fails the session ends without a reply.
func (s *session) handshake() bool {
	conn, err := s.server.secure(s.listener, s.wire.raw, s.limits.Handshake)
	if err != nil {
		if !s.unnamed { // a balancer may only look whether the port is open
			s.server.counts.handshakeFailures.Add(1)
		}
		if s.server.log.Enabled(context.Background(), slog.LevelDebug) && s.server.mail.Allow("TLS handshake failed", s.peer.addr) {
			s.server.log.Debug("TLS handshake failed", "client", s.peer.addr.String(), "listener", s.listener.Name, "error", err)
		}
		s.end("handshake failed")
		return false
	}
	s.wire.conn = conn
	s.reader = smtp.NewReader(s.wire)
	s.greeted, s.hello, s.esmtp, s.identity, s.tx = false, "", false, nil, nil
	state := conn.ConnectionState()
	s.secured = tlsFacts(&state)
	return true
}

// tlsFacts describes a session as "TLS1.3 TLS_AES_128_GCM_SHA256".
func tlsFacts(state *tls.ConnectionState) string {
	version := "TLS1.3"
	if state.Version == tls.VersionTLS12 {
		version = "TLS1.2"
	}
	return version + " " + tls.CipherSuiteName(state.CipherSuite)
}
