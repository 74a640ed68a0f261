package submission

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"io"
	"math/big"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/logtest"
	"postern/relay/maillog"
)

// patience bounds every wait of a test. None is as long when the code is right.
const patience = 3 * time.Minute

// testServer is a server on loopback with fakes behind it.
type testServer struct {
	*Server
	t        testing.TB
	queue    *fakeQueue
	verifier *fakeVerifier
	handoff  *fakeHandoff
	log      *logtest.Lines
	clear    net.Listener // STARTTLS
	implicit net.Listener
	served   chan error
	panics   int64 // expected
}

// shown is a fixed certificate, which the test may replace.
type shown struct {
	atomic.Pointer[tls.Certificate]
}

func (s *shown) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.Load(), nil }

// testCertificates is made once: its keys cost time.
var testCertificates = sync.OnceValue(func() *shown {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"relay.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	s := &shown{}
	s.Store(&tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key})
	return s
})

// startServer serves until the end of the test, and then checks that nothing is
// left: no session, no panic, no octet of a budget.
func startServer(t testing.TB, change ...func(*Config)) *testServer {
	t.Helper()
	ts := &testServer{
		t: t, queue: &fakeQueue{}, verifier: &fakeVerifier{}, handoff: &fakeHandoff{}, log: &logtest.Lines{},
		clear: listen(t), implicit: listen(t), served: make(chan error, 1),
	}
	cfg := Config{
		Hostname: "relay.test",
		Listeners: []Listener{
			{Net: ts.clear, TLS: STARTTLS, Name: "submission"},
			{Net: ts.implicit, TLS: Implicit, Name: "submissions"},
		},
		Certificates: testCertificates(), Verifier: ts.verifier, Queue: ts.queue, Handoff: ts.handoff,
		Log: maillog.New(ts.log.Logger()), System: ts.log.Logger(), TempDir: t.TempDir(),
	}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if ts.Server, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { ts.served <- ts.Serve() }()
	t.Cleanup(ts.stop)
	return ts
}

func listen(t testing.TB) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func (ts *testServer) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := ts.Shutdown(ctx); err != nil {
		ts.t.Errorf("shutdown: %v", err)
	}
	if err := <-ts.served; err != nil {
		ts.t.Errorf("serve: %v", err)
	}
	ts.handoff.finish()
	st := ts.Stats()
	if st.Open != 0 || st.Panics != ts.panics || st.Memory != 0 || st.TempFiles != 0 {
		ts.t.Errorf("left at the end: %+v", st)
	}
	if st.Panics > ts.panics {
		ts.t.Log(ts.log.String())
	}
}

// client is a client that says exactly what a test wants.
type client struct {
	t    testing.TB
	conn net.Conn
	r    *bufio.Reader
}

func newClient(t testing.TB, conn net.Conn) *client {
	t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	return &client{t: t, conn: conn, r: bufio.NewReader(conn)}
}

// dial connects to the STARTTLS listener and reads the greeting.
func (ts *testServer) dial(t testing.TB) *client {
	t.Helper()
	conn, err := net.Dial("tcp", ts.clear.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.expect(220)
	return c
}

// dialTLS connects to the TLS listener and reads the greeting.
func (ts *testServer) dialTLS(t testing.TB) *client {
	t.Helper()
	conn, err := tls.Dial("tcp", ts.implicit.Addr().String(), insecure())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.expect(220)
	return c
}

// login connects over TLS and authenticates.
func (ts *testServer) login(t testing.TB) *client {
	t.Helper()
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	return c
}

func insecure() *tls.Config {
	return &tls.Config{InsecureSkipVerify: true}
}

func plain(name, password string) string {
	return base64.StdEncoding.EncodeToString([]byte("\x00" + name + "\x00" + password))
}

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.conn, s); err != nil {
		c.t.Fatalf("send %.60q: %v", s, err)
	}
}

// cmd sends a line and expects a reply code.
func (c *client) cmd(code int, line string) string {
	c.t.Helper()
	c.send(line + "\r\n")
	return c.expect(code)
}

func (c *client) expect(code int) string {
	c.t.Helper()
	got, text, err := c.reply()
	if err != nil || got != code {
		c.t.Fatalf("want %d, got %d %q, %v", code, got, text, err)
	}
	return text
}

// reply reads one reply; its text has a line for each of the reply's.
func (c *client) reply() (code int, text string, err error) {
	var lines []string
	for {
		line, err := c.r.ReadString('\n')
		if err != nil {
			return 0, line, err
		}
		if len(line) < 6 || !strings.HasSuffix(line, "\r\n") {
			return 0, line, fmt.Errorf("not a reply: %q", line)
		}
		if code, err = strconv.Atoi(line[:3]); err != nil {
			return 0, line, fmt.Errorf("not a reply: %q", line)
		}
		lines = append(lines, line[4:len(line)-2])
		if line[3] == ' ' {
			return code, strings.Join(lines, "\n"), nil
		}
	}
}

// expectClosed wants the server to close without another word.
func (c *client) expectClosed() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	if len(rest) > 0 {
		c.t.Fatalf("want the end, got %q", rest)
	}
	if ne, ok := err.(net.Error); ok && ne.Timeout() {
		c.t.Fatal("want the end, but the connection is open")
	}
}

// startTLS upgrades the connection.
func (c *client) startTLS() {
	c.t.Helper()
	c.cmd(220, "STARTTLS")
	conn := tls.Client(c.conn, insecure())
	if err := conn.Handshake(); err != nil {
		c.t.Fatalf("handshake: %v", err)
	}
	c.conn, c.r = conn, bufio.NewReader(conn)
}

// envelope sends MAIL and RCPT and DATA, up to the 354.
func (c *client) envelope() {
	c.t.Helper()
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	c.cmd(250, "RCPT TO:<bob@example.net>")
	c.cmd(354, "DATA")
}

const smallMessage = "From: alice@example.com\r\nSubject: test\r\n\r\nHello\r\n"

// waitFor waits until a condition holds. It is for what no signal tells, the end
// of a session seen from outside.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not after %v: %s", patience, what)
		}
		<-tick.C
	}
}
