package submission

import (
	"crypto/tls"
	"io"
	"net"
	"testing"

	"postern/internal/smtptest"
)

// keyOf connects to a listener with a session cache and reports whether the
// session was resumed.
func resumed(t *testing.T, addr string, cache tls.ClientSessionCache, startTLS bool) bool {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	if startTLS {
		c.expect(220)
		c.cmd(250, "EHLO client.test")
		c.cmd(220, "STARTTLS")
	}
	secured := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: "relay.test", ClientSessionCache: cache})
	if err := secured.Handshake(); err != nil {
		t.Fatal(err)
	}
	c = newClient(t, secured)
	if !startTLS {
		c.expect(220)
	}
	c.cmd(250, "EHLO client.test") // the ticket comes with the first octets
	c.cmd(221, "QUIT")
	return secured.ConnectionState().DidResume
}

// TestA11TicketsPerListener: a ticket of one listener is worth nothing to another.
func TestA11TicketsPerListener(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	cache := tls.NewLRUClientSessionCache(4)
	clear, implicit := ts.clear.Addr().String(), ts.implicit.Addr().String()
	if resumed(t, clear, cache, true) {
		t.Fatal("resumed without a ticket")
	}
	if !resumed(t, clear, cache, true) {
		t.Error("a ticket does not resume on its own listener")
	}
	if resumed(t, implicit, cache, false) {
		t.Error("a ticket of 587 resumed on 465")
	}
}

// TestA11OldProtocols refuses what is older than TLS 1.2, and other protocols.
func TestA11OldProtocols(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.0":  {InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS10},
		"TLS 1.1":  {InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11},
		"ALPN web": {InsecureSkipVerify: true, NextProtos: []string{"h2", "http/1.1"}},
	} {
		if conn, err := tls.Dial("tcp", ts.implicit.Addr().String(), cfg); err == nil {
			conn.Close()
			t.Errorf("%s: the handshake went through", name)
		}
	}
	for name, cfg := range map[string]*tls.Config{
		"TLS 1.2":   {InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12},
		"ALPN smtp": {InsecureSkipVerify: true, NextProtos: []string{"smtp"}},
	} {
		conn, err := tls.Dial("tcp", ts.implicit.Addr().String(), cfg)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		conn.Close()
	}
}

// TestA11AbandonedHandshakes leaves many half-way; the next client is served.
func TestA11AbandonedHandshakes(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) {
		cfg.Limits.Handshakes, cfg.Limits.ConnectionsPerAddress = 4, 1000
	})
	hello := clientHello(t)
	for i := range 100 {
		conn, err := net.Dial("tcp", ts.implicit.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, _ = conn.Write([]byte(hello[:i%len(hello)])) // the server may have gone already
		conn.Close()
	}
	ts.login(t).cmd(221, "QUIT")
}

// TestA11StuckHandshakes holds more handshakes open than are computed concurrently,
// before the first octet and after the last that a server answers; the next client
// does not wait for them.
func TestA11StuckHandshakes(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) {
		cfg.Limits.Handshakes, cfg.Limits.Handshake = 2, 10*patience
	})
	hello := clientHello(t)
	for i := range 12 {
		conn, err := net.Dial("tcp", ts.implicit.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		part := []string{"", hello[:len(hello)/2], hello}[i%3]
		if _, err := io.WriteString(conn, part); err != nil {
			t.Fatal(err)
		}
		if part != hello {
			continue
		}
		// The server has signed and waits for us.
		if _, err := io.ReadFull(conn, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
	}
	ts.login(t).cmd(221, "QUIT")
}

// TestCertificatesChangeInService: the next handshake shows the new certificate.
func TestCertificatesChangeInService(t *testing.T) {
	t.Parallel()
	ca, certs := smtptest.NewCA(t), &shown{}
	show := func(name string) {
		leaf := ca.Leaf(t, name).Certificate
		certs.Store(&leaf)
	}
	show("one.test")
	ts := startServer(t, func(cfg *Config) { cfg.Certificates = certs })
	seen := func() string {
		conn, err := tls.Dial("tcp", ts.implicit.Addr().String(), insecure())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		return conn.ConnectionState().PeerCertificates[0].DNSNames[0]
	}
	if name := seen(); name != "one.test" {
		t.Fatalf("shown: %s", name)
	}
	show("two.test")
	if name := seen(); name != "two.test" {
		t.Errorf("shown after the change: %s", name)
	}
}
