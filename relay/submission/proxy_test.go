package submission

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"postern/auth"
)

// block makes a version 2 header.
func block(command, family byte, body string) string {
	head := append([]byte(nil), proxySignature[:]...)
	head = append(head, command, family)
	head = binary.BigEndian.AppendUint16(head, uint16(len(body)))
	return string(head) + body
}

const (
	tcp4 = "\xc0\x00\x02\x07" + "\x0a\x00\x00\x01" + "\x9c\x40" + "\x02\x4b" // 192.0.2.7:40000 to 10.0.0.1:587
	tcp6 = "\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x07" +
		"\x20\x01\x0d\xb8\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01" + "\x9c\x40" + "\x02\x4b"
	mapped = "\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x07" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\x0a\x00\x00\x01" + "\x9c\x40" + "\x02\x4b"
	line4 = "PROXY TCP4 192.0.2.7 10.0.0.1 40000 587\r\n"
)

func TestProxyHeader(t *testing.T) {
	t.Parallel()
	const client4, client6, nobody = "192.0.2.7:40000", "[2001:db8::7]:40000", "nobody"
	for name, tc := range map[string]struct{ header, want string }{
		"1: IPv4":                       {line4, client4},
		"1: IPv6":                       {"PROXY TCP6 2001:db8::7 2001:db8::1 40000 587\r\n", client6},
		"1: IPv4 in IPv6":               {"PROXY TCP6 ::ffff:192.0.2.7 ::ffff:10.0.0.1 40000 587\r\n", client4},
		"1: the longest":                {"PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", nobody},
		"1: unknown":                    {"PROXY UNKNOWN\r\n", nobody},
		"2: IPv4":                       {block(0x21, 0x11, tcp4), client4},
		"2: IPv6":                       {block(0x21, 0x21, tcp6), client6},
		"2: IPv4 in IPv6":               {block(0x21, 0x21, mapped), client4},
		"2: local":                      {block(0x20, 0x00, ""), nobody},
		"2: local, but with an address": {block(0x20, 0x11, tcp4), nobody},
		"2: local, of another family":   {block(0x20, 0x12, "whatever"), nobody},
		"2: local, cut short":           {block(0x20, 0x11, tcp4[:4]), nobody},
		"2: no family":                  {block(0x21, 0x00, "whatever"), nobody},
		"2: unix":                       {block(0x21, 0x31, strings.Repeat("/", 216)), nobody},
		"2: additions":                  {block(0x21, 0x11, tcp4+"\x04\x00\x00"+"\x02\x00\x09localhost"), client4},
		"2: the largest":                {block(0x21, 0x11, tcp4+"\x04\x0f\xf1"+strings.Repeat("\x00", 0xff1)), client4},

		"1: too long":                     {"PROXY UNKNOWN " + strings.Repeat("x", 200) + "\r\n", ""},
		"1: bare LF":                      {"PROXY TCP4 192.0.2.7 10.0.0.1 40000 587\n", ""},
		"1: two spaces":                   {"PROXY TCP4  192.0.2.7 10.0.0.1 40000 587\r\n", ""},
		"1: more behind it":               {"PROXY TCP4 192.0.2.7 10.0.0.1 40000 587 x\r\n", ""},
		"1: less":                         {"PROXY TCP4 192.0.2.7 10.0.0.1 40000\r\n", ""},
		"1: a name":                       {"PROXY TCP4 localhost 10.0.0.1 40000 587\r\n", ""},
		"1: a zone":                       {"PROXY TCP6 fe80::1%eth0 fe80::2 40000 587\r\n", ""},
		"1: the other family":             {"PROXY TCP4 2001:db8::7 10.0.0.1 40000 587\r\n", ""},
		"1: a bad destination":            {"PROXY TCP4 192.0.2.7 here 40000 587\r\n", ""},
		"1: octal":                        {"PROXY TCP4 192.0.2.007 10.0.0.1 40000 587\r\n", ""},
		"1: port too large":               {"PROXY TCP4 192.0.2.7 10.0.0.1 65536 587\r\n", ""},
		"1: port with a sign":             {"PROXY TCP4 192.0.2.7 10.0.0.1 +4000 587\r\n", ""},
		"1: port with a zero in front":    {"PROXY TCP4 192.0.2.7 10.0.0.1 04000 587\r\n", ""},
		"1: UDP":                          {"PROXY UDP4 192.0.2.7 10.0.0.1 40000 587\r\n", ""},
		"1: no client can be there":       {"PROXY TCP4 0.0.0.0 10.0.0.1 40000 587\r\n", ""},
		"1: NUL":                          {"PROXY TCP4 192.0.2.7\x00 10.0.0.1 40000 587\r\n", ""},
		"1: lower case":                   {"proxy TCP4 192.0.2.7 10.0.0.1 40000 587\r\n", ""},
		"1: cut short":                    {"PROXY TCP4 192.0.2", ""},
		"2: cut short in the signature":   {string(proxySignature[:7]), ""},
		"2: cut short in the addresses":   {block(0x21, 0x11, tcp4)[:20], ""},
		"2: another version":              {block(0x31, 0x11, tcp4), ""},
		"2: another command":              {block(0x22, 0x11, tcp4), ""},
		"2: UDP":                          {block(0x21, 0x12, tcp4), ""},
		"2: another family":               {block(0x21, 0x41, tcp4), ""},
		"2: less than its addresses":      {block(0x21, 0x21, tcp4), ""},
		"2: too large":                    {block(0x21, 0x11, tcp4+strings.Repeat("\x00", 4<<10)), ""},
		"2: an addition beyond the block": {block(0x21, 0x11, tcp4+"\x04\xff\xff\x00"), ""},
		"2: half an addition":             {block(0x21, 0x11, tcp4+"\x04\x00"), ""},
		"2: multicast":                    {block(0x21, 0x11, "\xe0\x00\x00\x01"+tcp4[4:]), ""},
		"SMTP":                            {"EHLO client.test\r\n", ""},
		"TLS":                             {"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\x00", ""},
		"nothing":                         {"", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const rest = "EHLO client.test\r\n"
			in := strings.NewReader(tc.header + rest)
			if tc.want == "" && (strings.Contains(name, "cut short") || tc.header == "") {
				in = strings.NewReader(tc.header)
			}
			client, err := readProxyHeader(in)
			if err != nil && client.IsValid() {
				t.Errorf("an error, and the client %v", client)
			}
			got := client.String()
			switch {
			case err != nil:
				got = ""
			case !client.IsValid():
				got = nobody
			}
			if got != tc.want {
				t.Fatalf("client %q, %v; want %q", got, err, tc.want)
			}
			if err == nil && in.Len() != len(rest) {
				t.Errorf("%d octets are left behind the header, want %d", in.Len(), len(rest))
			}
		})
	}
}

// FuzzProxyHeader: whatever comes, at most a header is read, and what a header says
// can be said again.
func FuzzProxyHeader(f *testing.F) {
	for _, seed := range []string{
		line4, "PROXY UNKNOWN\r\n", "PROXY TCP6 2001:db8::7 2001:db8::1 40000 587\r\n",
		block(0x21, 0x11, tcp4), block(0x21, 0x21, tcp6), block(0x20, 0, ""), block(0x21, 0x11, tcp4+"\x04\x00\x01x"),
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, octets []byte) {
		in := bytes.NewReader(octets)
		client, err := readProxyHeader(in)
		read := len(octets) - in.Len()
		switch {
		case bytes.HasPrefix(octets, proxySignature[:]) && read > 16+proxyBlock,
			!bytes.HasPrefix(octets, proxySignature[:]) && read > proxyLine:
			t.Fatalf("%d octets were read", read)
		case err != nil:
			if client.IsValid() {
				t.Fatalf("an error and a client, %v", client)
			}
			return
		case octets[0] == 'P' && !bytes.HasSuffix(octets[:read], []byte("\r\n")):
			t.Fatalf("read %q", octets[:read])
		case octets[0] != 'P' && read != 16+int(binary.BigEndian.Uint16(octets[14:])):
			t.Fatalf("read %d octets of %q", read, octets)
		case !client.IsValid():
			return
		}
		again := "PROXY TCP6 " + client.Addr().String() + " ::1 "
		if client.Addr().Is4() {
			again = "PROXY TCP4 " + client.Addr().String() + " 10.0.0.1 "
		}
		_, port, _ := net.SplitHostPort(client.String())
		if same, err := readProxyHeader(strings.NewReader(again + port + " 587\r\n")); err != nil || same != client {
			t.Fatalf("%v became %v, %v", client, same, err)
		}
	})
}

// behind makes both listeners of a server PROXY listeners for balancers at 127.0.0.1.
func behind(cfg *Config) {
	for i := range cfg.Listeners {
		cfg.Listeners[i].Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
	}
}

// through connects as a load balancer does that says header first.
func (ts *testServer) through(t testing.TB, header string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", ts.clear.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.send(header)
	return c
}

// throughTLS is through for the TLS listener, up to the greeting.
func (ts *testServer) throughTLS(t testing.TB, header string) *client {
	t.Helper()
	conn, err := net.Dial("tcp", ts.implicit.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, header); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, tls.Client(conn, insecure()))
	c.expect(220)
	return c
}

// TestProxyNamesTheClient: all that knows a client by its address knows the one in the
// header, on both kinds of listener.
func TestProxyNamesTheClient(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	clear := ts.through(t, line4)
	clear.expect(220)
	clear.cmd(250, "EHLO client.test")
	clear.startTLS()
	implicit := ts.throughTLS(t, block(0x21, 0x21, tcp6))
	for _, c := range []*client{clear, implicit} {
		c.cmd(250, "EHLO client.test")
		c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
		c.envelope()
		c.send(smallMessage + ".\r\n")
		c.expect(250)
		c.cmd(221, "QUIT")
	}
	for i, want := range []string{"192.0.2.7", "2001:db8::7"} {
		m := ts.queue.all()[i]
		if got := m.ClientAddr.String(); got != want {
			t.Errorf("message of %s, want %s", got, want)
		}
		if !strings.Contains(m.Body, want) || strings.Contains(m.Body, "127.0.0.1") {
			t.Errorf("Received does not have %s:\n%s", want, m.Body)
		}
	}
	for _, text := range []string{`"client":"192.0.2.7:40000"`, `"client":"[2001:db8::7]:40000"`} {
		if ts.log.Count(text) == 0 {
			t.Errorf("the log has no %s:\n%s", text, ts.log)
		}
	}
	if ts.log.Count("127.0.0.1") > 0 {
		t.Errorf("the log has the balancer's address:\n%s", ts.log)
	}
	if st := ts.Stats(); st.Sessions != 2 || st.RefusedByProxy != 0 {
		t.Errorf("stats %+v", st)
	}
}

// TestProxyVerifierSeesTheClient: failures are throttled by it, and networks of
// credentials are compared with it.
func TestProxyVerifierSeesTheClient(t *testing.T) {
	t.Parallel()
	peers := make(chan auth.Peer, 1)
	ts := startServer(t, behind, func(cfg *Config) { cfg.Verifier = &peerVerifier{peers} })
	c := ts.throughTLS(t, line4)
	c.cmd(250, "EHLO client.test")
	c.cmd(535, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	if got := (<-peers).Addr.String(); got != "192.0.2.7" {
		t.Errorf("the password was tried from %s", got)
	}
}

// TestProxyLimits: connections are counted for clients, not for the balancer.
func TestProxyLimits(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind, func(cfg *Config) { cfg.Limits.Connections, cfg.Limits.ConnectionsPerAddress = 8, 2 })
	header := func(ip string) string { return "PROXY TCP4 " + ip + " 10.0.0.1 40000 587\r\n" }
	for _, ip := range []string{"192.0.2.1", "192.0.2.1", "192.0.2.2"} {
		ts.through(t, header(ip)).expect(220)
	}
	over := ts.through(t, header("192.0.2.1"))
	over.expect(421)
	over.expectClosed()
	waitFor(t, "three sessions", func() bool { return ts.Stats().Open == 3 })
	for _, ip := range []string{"192.0.2.3", "192.0.2.5", "192.0.2.6", "192.0.2.7"} {
		ts.through(t, header(ip)).expect(220)
	}
	// One that says nothing yet is one of all as well.
	silent := ts.through(t, "")
	waitFor(t, "eight sessions", func() bool { return ts.Stats().Open == 8 })
	ts.through(t, "").expect(421)
	silent.send(header("192.0.2.4"))
	silent.expect(220)
	silent.cmd(221, "QUIT")
	waitFor(t, "a place is free", func() bool { return ts.Stats().Open == 7 })
	if used, _ := ts.peers.places.Use(); used != 7 {
		t.Errorf("%d places are taken, want 7", used)
	}
	if st := ts.Stats(); st.RefusedByAddress != 1 || st.RefusedConnections != 1 {
		t.Errorf("refused by address %d and in all %d, want 1 and 1", st.RefusedByAddress, st.RefusedConnections)
	}
}

// TestProxyFromElsewhere: a header from an address that is no balancer's is a lie; the
// connection is closed without a word, and the log is not filled.
func TestProxyFromElsewhere(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	for range 3 {
		c := dialFrom(t, ts, "127.0.0.2")
		_, _ = io.WriteString(c.conn, line4) // it may be closed already
		if rest, err := io.ReadAll(c.r); len(rest) > 0 || errors.Is(err, io.EOF) {
			t.Errorf("it heard %q", rest)
		}
	}
	waitFor(t, "three are counted", func() bool { return ts.Stats().RefusedByProxy == 3 })
	if n := ts.log.Count("outside its proxy_protocol"); n != 1 {
		t.Errorf("%d lines in the log, want 1 in a minute:\n%s", n, ts.log)
	}
	if st := ts.Stats(); st.Sessions != 0 {
		t.Errorf("stats %+v", st)
	}
}

// TestProxyHeaderMissing: a balancer's connection without a header, or with a bad one,
// is closed without a word.
func TestProxyHeaderMissing(t *testing.T) {
	t.Parallel()
	for name, header := range map[string]string{
		"SMTP":        "EHLO client.test\r\n",
		"no address":  "PROXY TCP4 x y 1 2\r\n",
		"endless":     "PROXY UNKNOWN " + strings.Repeat("x", 100),
		"too large":   block(0x21, 0x11, strings.Repeat("x", 8<<10)),
		"bad command": block(0x2f, 0x11, tcp4),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t, behind)
			ts.through(t, header).expectClosed()
			waitFor(t, "it is counted", func() bool { return ts.Stats().RefusedByProxy == 1 })
		})
	}
}

// TestProxyPortChecked: a balancer that only looks whether the port is open is no news.
// One that breaks off in its header is.
func TestProxyPortChecked(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	for range 3 {
		c := ts.through(t, "")
		waitFor(t, "it is in", func() bool { return ts.Stats().Open == 1 })
		_ = c.conn.Close()
		waitFor(t, "it is gone", func() bool { return ts.Stats().Open == 0 })
	}
	if st := ts.Stats(); st.RefusedByProxy != 0 || ts.log.Count("without a valid PROXY header") != 0 {
		t.Errorf("stats %+v, log:\n%s", st, ts.log)
	}
	c := ts.through(t, line4[:8])
	_ = c.conn.Close()
	waitFor(t, "it is counted", func() bool { return ts.Stats().RefusedByProxy == 1 })
}

// TestProxyInPieces: a header may come octet by octet, and SMTP behind it in the same packet.
func TestProxyInPieces(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	for _, header := range []string{line4, block(0x21, 0x11, tcp4+"\x04\x00\x01x")} {
		c := ts.through(t, "")
		if err := c.conn.(*net.TCPConn).SetNoDelay(true); err != nil {
			t.Fatal(err)
		}
		for i := range len(header) {
			c.send(header[i : i+1])
		}
		c.send("EHLO client.test\r\nNOOP\r\n")
		c.expect(220)
		c.expect(250)
		c.expect(250)
		c.cmd(221, "QUIT")
	}
}

// TestProxySecondHeader: only the first header counts. A client that sends one of its
// own through the balancer says an unknown command, or no TLS.
func TestProxySecondHeader(t *testing.T) {
	t.Parallel()
	const forged = "PROXY TCP4 203.0.113.66 10.0.0.1 1 587\r\n"
	ts := startServer(t, behind)
	c := ts.through(t, line4+forged)
	c.expect(220)
	c.expect(500)
	c.cmd(250, "EHLO client.test")
	c.startTLS()
	c.cmd(500, strings.TrimSuffix(forged, "\r\n"))
	c.cmd(250, "EHLO client.test")
	c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	if ts.log.Count("203.0.113.66") > 0 || ts.log.Count("192.0.2.7") == 0 {
		t.Errorf("the second header counts:\n%s", ts.log)
	}

	conn, err := net.Dial("tcp", ts.implicit.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, line4+forged)
	if err := tls.Client(conn, insecure()).Handshake(); err == nil {
		t.Error("a TLS session came about behind octets in clear")
	}
}

// TestProxyPlaintextBeforeTLS: octets in clear behind the header never become part of
// the protected session.
func TestProxyPlaintextBeforeTLS(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	c := ts.through(t, line4+"EHLO client.test\r\nSTARTTLS\r\nEHLO smuggled.test\r\n")
	c.expect(220)
	c.expect(250)
	c.expect(554)
	c.expectClosed()
}

// TestProxyHealthCheck: a connection for which the balancer names no client is
// answered, may not log in and is in no figure.
func TestProxyHealthCheck(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind, func(cfg *Config) { cfg.Limits.ConnectionsPerAddress = 1 })
	for _, header := range []string{block(0x20, 0x00, ""), block(0x20, 0x11, tcp4), "PROXY UNKNOWN\r\n", block(0x21, 0x31, strings.Repeat("/", 216))} {
		c := ts.through(t, header) // each stays open: they count for no address
		c.expect(220)
		c.cmd(250, "EHLO health.test")
		c.startTLS()
		c.cmd(250, "EHLO health.test")
		c.cmd(454, "AUTH PLAIN "+plain("alice@example.com", "secret"))
		c.cmd(530, "MAIL FROM:<alice@example.com>")
	}
	if n := ts.verifier.calls.Load(); n != 0 {
		t.Errorf("%d passwords were tried", n)
	}
	if st := ts.Stats(); st.Sessions != 0 || st.Open != 4 || st.RefusedByProxy != 0 {
		t.Errorf("stats %+v", st)
	}
	if ts.log.Count("session_open") > 0 {
		t.Errorf("health checks are in the log:\n%s", ts.log)
	}
}

// TestProxyHealthCheckOfTLS: a balancer that looks whether the TLS port is open is no
// client whose handshake failed.
func TestProxyHealthCheckOfTLS(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	for i, header := range []string{block(0x20, 0x00, ""), line4} {
		conn, err := net.Dial("tcp", ts.implicit.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_, err = io.WriteString(conn, header)
		if err := errors.Join(err, conn.Close()); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the handshake failed", func() bool { return ts.log.Count("TLS handshake failed") == i+1 })
		waitFor(t, "it is over", func() bool { return ts.Stats().Open == 0 })
		if n := ts.Stats().HandshakeFailures; n != int64(i) {
			t.Errorf("%d handshakes of clients failed, want %d", n, i)
		}
	}
}

// TestProxyHeaderTime: who sends no whole header has five seconds, and a shutdown does
// not wait for it.
func TestProxyHeaderTime(t *testing.T) {
	t.Parallel()
	ts := startServer(t, behind)
	started := time.Now()
	ts.through(t, line4[:20]).expectClosed()
	if took := time.Since(started); took < proxyTime-time.Second {
		t.Errorf("closed after %v, want %v", took, proxyTime)
	}
	c := ts.through(t, line4[:20])
	waitFor(t, "it is a session", func() bool { return ts.Stats().Open == 1 })
	if err := <-ts.shutdownIn(patience); err != nil {
		t.Error(err)
	}
	c.expect(421) // which is said to nobody whose time is over
	c.expectClosed()
}

// peerVerifier knows nobody, and tells from where they came.
type peerVerifier struct{ peers chan auth.Peer }

func (v *peerVerifier) Verify(_ context.Context, _, _ string, peer auth.Peer) (auth.Identity, error) {
	v.peers <- peer
	return auth.Identity{}, auth.ErrCredentials
}
