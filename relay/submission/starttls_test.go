package submission

import (
	"bytes"
	"crypto/tls"
	"io"
	"net"
	"strings"
	"testing"
)

// recorder keeps what a connection received before it was secured.
type recorder struct {
	net.Conn
	got bytes.Buffer
}

func (r *recorder) Read(p []byte) (int, error) {
	n, err := r.Conn.Read(p)
	r.got.Write(p[:n])
	return n, err
}

// TestA3Injection sends octets with STARTTLS that could be taken for part of the
// session it begins.
func TestA3Injection(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	for name, behind := range map[string]string{
		"1 EHLO":        "EHLO commandinjectiontester\r\n",
		"2 MAIL":        "MAIL FROM:<alice@example.com>\r\n",
		"3 ClientHello": clientHello(t),
		"one octet":     "x",
	} {
		t.Run(name, func(t *testing.T) {
			c := ts.dial(t)
			c.cmd(250, "EHLO client.test")
			c.send("STARTTLS\r\n" + behind)
			c.expect(554)
			c.expectClosed()
		})
	}
	waitFor(t, "four violations counted", func() bool { return ts.Stats().Violations == 4 })
}

// clientHello returns the first flight of a TLS client.
func clientHello(t *testing.T) string {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		_ = tls.Client(ours, insecure()).Handshake() // it fails: nobody answers
	}()
	buf := make([]byte, 4096)
	n, err := theirs.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	return string(buf[:n])
}

// TestA3PlaintextAfter220 (case 4) speaks SMTP where the ClientHello is due.
func TestA3PlaintextAfter220(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.dial(t)
	c.cmd(250, "EHLO client.test")
	c.cmd(220, "STARTTLS")
	c.send("EHLO client.test\r\nMAIL FROM:<alice@example.com>\r\n")
	rest, _ := io.ReadAll(c.r) // a TLS alert, and the end
	if bytes.Contains(rest, []byte("250")) || bytes.Contains(rest, []byte("50")) {
		t.Errorf("the session went on in clear: %q", rest)
	}
	waitFor(t, "the failure is counted", func() bool { return ts.Stats().HandshakeFailures == 1 })
}

// TestA3NothingLearntInClear (cases 5 to 7) is in testdata/starttls; here the
// handshake follows a pipelined EHLO and what was said inside TLS is looked at.
func TestA3NothingLearntInClear(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	conn, err := net.Dial("tcp", ts.clear.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	rec := &recorder{Conn: conn}
	c := newClient(t, rec)
	c.expect(220)
	c.send("EHLO in-the-clear.test\r\nSTARTTLS\r\n")
	c.expect(250)
	c.expect(220)
	secured := tls.Client(rec, insecure())
	if err := secured.Handshake(); err != nil {
		t.Fatal(err)
	}
	c = newClient(t, secured)
	c.cmd(503, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	c.cmd(530, "MAIL FROM:<alice@example.com>")
	c.cmd(250, "EHLO inside.test")
	c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	c.envelope()
	c.send(smallMessage + ".\r\n")
	c.expect(250)
	if m := ts.queue.all()[0]; m.ClientHello != "inside.test" || !strings.HasPrefix(m.TLS, "TLS1.3 ") {
		t.Errorf("hello %q, tls %q", m.ClientHello, m.TLS)
	}
}

// TestA4AuthInClear looks behind the refusal: no check is made and no secret kept.
func TestA4AuthInClear(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.dial(t)
	if offer := c.cmd(250, "EHLO client.test"); strings.Contains(offer, "AUTH") {
		t.Errorf("AUTH is offered in clear: %q", offer)
	}
	secret := plain("alice@example.com", "secret")
	c.cmd(538, "AUTH PLAIN "+secret)
	c.cmd(538, "AUTH PLAIN")
	c.cmd(500, secret) // the continuation that was not asked for
	c.cmd(538, "AUTH LOGIN YWxpY2U=")
	c.cmd(221, "QUIT")
	c.expectClosed()
	if n := ts.verifier.calls.Load(); n != 0 {
		t.Errorf("the verifier was asked %d times", n)
	}
	if ts.log.Count(secret) != 0 || ts.log.Count("YWxpY2U") != 0 {
		t.Error("a secret is in the log")
	}
}

// TestA4PlaintextOnTLSPort is closed immediately, without an SMTP reply.
func TestA4PlaintextOnTLSPort(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	conn, err := net.Dial("tcp", ts.implicit.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, conn)
	c.send("EHLO client.test\r\nAUTH PLAIN " + plain("alice@example.com", "secret") + "\r\n")
	rest, _ := io.ReadAll(c.r)
	if bytes.Contains(rest, []byte("relay.test")) {
		t.Errorf("answered in clear: %q", rest)
	}
}
