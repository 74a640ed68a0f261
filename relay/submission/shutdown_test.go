package submission

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"postern/auth"
	"postern/internal/leaktest"
	"postern/relay/queue"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// shutdownIn begins a shutdown that has so long, and returns its result.
func (ts *testServer) shutdownIn(d time.Duration) <-chan error {
	done := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), d)
		defer cancel()
		done <- ts.Shutdown(ctx)
	}()
	<-ts.draining.Done()
	return done
}

// TestShutdownIdle: sessions between transactions hear 421 immediately, wherever they
// are, and no new ones are taken. What was waited for would be cut, for nothing ends
// by itself.
func TestShutdownIdle(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Handshake = time.Hour })
	greeted := ts.dial(t)
	secured := ts.login(t)
	inAuth := ts.dialTLS(t)
	inAuth.cmd(250, "EHLO client.test")
	inAuth.cmd(334, "AUTH LOGIN")
	handshaking, err := net.Dial("tcp", ts.implicit.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer handshaking.Close()
	waitFor(t, "four sessions", func() bool { return ts.Stats().Open == 4 })

	done := ts.shutdownIn(patience)
	for _, c := range []*client{greeted, secured, inAuth} {
		c.expect(421)
		c.expectClosed()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if conn, err := net.Dial("tcp", ts.clear.Addr().String()); err == nil {
		conn.Close()
		t.Error("a connection was taken after the shutdown")
	}
}

// TestShutdownTransaction: a message that is under way is accepted, and then the
// session ends.
func TestShutdownTransaction(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c, inMail := ts.login(t), ts.login(t)
	c.envelope()
	inMail.cmd(250, "MAIL FROM:<alice@example.com>")
	c.send("From: alice@example.com\r\nSubject: late\r\n\r\n")
	done := ts.shutdownIn(patience)
	inMail.cmd(250, "RCPT TO:<bob@example.net>")
	inMail.cmd(354, "DATA")
	inMail.send("From: alice@example.com\r\n\r\n")
	for _, c := range []*client{c, inMail} {
		c.send("Hello\r\n.\r\n")
		c.expect(250)
		c.expect(421)
		c.expectClosed()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if n := ts.queue.len(); n != 2 {
		t.Errorf("%d messages are queued, want 2", n)
	}
}

// TestShutdownCut: a message that does not end is cut when patience does.
func TestShutdownCut(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c, inMail := ts.login(t), ts.login(t)
	c.envelope()
	c.send("Subject: never\r\n\r\n")
	inMail.cmd(250, "MAIL FROM:<alice@example.com>")
	err := <-ts.shutdownIn(50 * time.Millisecond)
	if err == nil {
		t.Error("sessions were cut, but Shutdown says nothing")
	}
	for _, c := range []*client{c, inMail} {
		c.expect(421)
		c.expectClosed()
	}
	if n := ts.queue.len(); n != 0 {
		t.Errorf("%d messages are queued", n)
	}
}

// TestShutdownDuringCommit: neither the client's disconnect nor the end of the
// shutdown's patience cancels a commit; Shutdown waits for it, and the message is
// handed over.
func TestShutdownDuringCommit(t *testing.T) {
	t.Parallel()
	for _, disconnect := range []bool{false, true} {
		ts := startServer(t)
		ts.handoff.room = 10
		committing, release := make(chan struct{}), make(chan struct{})
		ts.queue.refuse = func(int, queue.Message) error {
			close(committing)
			<-release
			return nil
		}
		c := ts.login(t)
		c.envelope()
		c.send(smallMessage + ".\r\n")
		<-committing
		if disconnect {
			c.conn.(*tls.Conn).NetConn().Close()
		}
		done := ts.shutdownIn(10 * time.Millisecond)
		<-ts.cutting.Done()
		close(release)
		if err := <-done; err == nil {
			t.Error("Shutdown had to wait longer than its context, but says nothing")
		}
		if !disconnect {
			c.expect(250)
			c.expect(421)
			c.expectClosed()
		}
		if n := ts.handoff.finish(); n != 1 {
			t.Errorf("%d messages were handed over, want 1", n)
		}
	}
}

// TestShutdownPipelined: commands that have come already are not run when the
// server goes down, unless they belong to a transaction.
func TestShutdownPipelined(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	verifying, release := make(chan struct{}), make(chan struct{})
	ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) {
		close(verifying)
		<-release
		return auth.Identity{Name: "alice@example.com"}, nil
	}
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	c.send("AUTH PLAIN " + plain("alice@example.com", "secret") + "\r\nNOOP\r\nNOOP\r\n")
	<-verifying
	done := ts.shutdownIn(patience)
	close(release)
	c.expect(235)
	c.expect(421)
	c.expectClosed()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestWireInterrupt: an interrupt counts whether it comes before the wait or in it,
// and spares a wait within a transaction until patience ends.
func TestWireInterrupt(t *testing.T) {
	t.Parallel()
	limits := Limits{}.withDefaults()
	for _, tc := range []struct {
		name            string
		idle, cut, ends bool
	}{
		{"idle", true, false, true},
		{"in a transaction", false, false, false},
		{"cut in a transaction", false, true, true},
	} {
		for _, before := range []bool{true, false} {
			ours, theirs := net.Pipe()
			soon := time.Now().Add(patience)
			w := &wire{raw: ours, conn: ours, limits: &limits, end: soon, until: soon, idle: tc.idle}
			if before {
				w.interrupt(tc.cut)
			}
			started, got := time.Now(), make(chan error, 1)
			go func() {
				_, err := w.Read(make([]byte, 1))
				got <- err
			}()
			if !before {
				waitFor(t, "the wait has begun", func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return w.armed.Equal(soon)
				})
				w.interrupt(tc.cut)
			}
			if !tc.ends {
				_, _ = theirs.Write([]byte("x")) // net.Pipe: returns when it was read
			}
			if err := <-got; errors.Is(err, errShutdown) != tc.ends || !tc.ends && err != nil {
				t.Errorf("%s, interrupted before: %v: %v", tc.name, before, err)
			}
			if time.Since(started) > patience/2 {
				t.Errorf("%s, interrupted before: %v: waited for the deadline", tc.name, before)
			}
			ours.Close()
			theirs.Close()
		}
	}
}

// TestConnectionLimits: too many from one address and too many at all hear 421; a
// place is free again when a session ends.
func TestConnectionLimits(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) {
		cfg.Limits.Connections, cfg.Limits.ConnectionsPerAddress = 6, 2
	})
	first, second := ts.dial(t), ts.dial(t)
	third, err := net.Dial("tcp", ts.clear.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, third)
	c.expect(421)
	c.expectClosed()
	if _, err := tls.Dial("tcp", ts.implicit.Addr().String(), insecure()); err == nil {
		t.Error("one too many on the TLS listener was served")
	}
	other := dialFrom(t, ts, "127.0.0.2")
	other.expect(220)
	for _, ip := range []string{"127.0.0.3", "127.0.0.4", "127.0.0.5"} {
		dialFrom(t, ts, ip).expect(220)
	}
	dialFrom(t, ts, "127.0.0.6").expect(421) // six in all

	first.cmd(221, "QUIT")
	waitFor(t, "a place is free", func() bool { return ts.Stats().Open == 5 })
	last := dialFrom(t, ts, "127.0.0.6")
	last.expect(220)
	last.cmd(221, "QUIT")
	second.cmd(221, "QUIT")
	if s := ts.Stats(); s.RefusedConnections != 1 || s.RefusedByAddress != 2 {
		t.Errorf("%d refused connections were counted in all and %d by address; want 1 and 2", s.RefusedConnections, s.RefusedByAddress)
	}
}

// dialFrom connects from another loopback address.
func dialFrom(t *testing.T, ts *testServer, ip string) *client {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	conn, err := d.Dial("tcp", ts.clear.Addr().String())
	if err != nil {
		t.Skipf("no loopback address %s here: %v", ip, err)
	}
	return newClient(t, conn)
}

func TestPeerNetwork(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.1":               "192.0.2.1/32",
		"::ffff:192.0.2.1":        "192.0.2.1/32",
		"2001:db8:1:2:3:4:5:6":    "2001:db8:1:2::/64",
		"fe80::1":                 "fe80::/64",
		"2001:db8:1:2:ffff::9999": "2001:db8:1:2::/64",
	} {
		p := peerOf(&net.TCPAddr{IP: net.ParseIP(addr), Port: 1, Zone: strings.Repeat("z", 1)})
		if got := p.network.String(); got != want {
			t.Errorf("%s: network %s, want %s", addr, got, want)
		}
	}
}
