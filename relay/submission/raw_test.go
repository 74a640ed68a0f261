package submission

import (
	"bytes"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"postern/auth"
)

// scripted is a connection whose client says a text over and over, or once, and
// whose answers are kept or dropped. Deadlines are not kept.
type scripted struct {
	text []byte
	once bool
	step int // octets for each read; 0: all that fits
	pos  int
	out  *bytes.Buffer // nil: dropped
}

func (c *scripted) Read(p []byte) (int, error) {
	if c.pos == len(c.text) {
		if c.once {
			return 0, io.EOF
		}
		c.pos = 0
	}
	if c.step > 0 && len(p) > c.step {
		p = p[:c.step]
	}
	n := copy(p, c.text[c.pos:])
	c.pos += n
	return n, nil
}

func (c *scripted) Write(p []byte) (int, error) {
	if c.out != nil {
		c.out.Write(p)
	}
	return len(p), nil
}

func (c *scripted) Close() error                     { return nil }
func (c *scripted) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (c *scripted) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (c *scripted) SetDeadline(time.Time) error      { return nil }
func (c *scripted) SetReadDeadline(time.Time) error  { return nil }
func (c *scripted) SetWriteDeadline(time.Time) error { return nil }

// runRaw plays octets to an authenticated session and returns what it said and how
// many messages it queued.
func runRaw(t testing.TB, ts *testServer, text []byte, step int) (said string, queued int) {
	var out bytes.Buffer
	s := newSession(ts.Server, arrival{listener: ts.listeners[0], conn: &scripted{text: text, once: true, step: step, out: &out}})
	s.secured, s.greeted, s.hello, s.esmtp = "TLS1.3 TLS_AES_128_GCM_SHA256", true, "client.test", true
	id, err := ts.verifier.Verify(t.Context(), "alice@example.com", "secret", auth.Peer{Addr: s.peer.addr.Addr()})
	if err != nil {
		t.Fatal(err)
	}
	s.identity = &id
	ts.queue.forget()
	s.run()
	return out.String(), ts.queue.len()
}

// FuzzSession plays any octets to an authenticated session. Every line that it says
// is a reply, a message is queued for each 250 that says so and for no other, and
// the way in which octets arrive changes nothing but what is refused for coming early.
func FuzzSession(f *testing.F) {
	tx := "MAIL FROM:<alice@example.com>\r\nRCPT TO:<bob@example.net>\r\nDATA\r\n"
	f.Add([]byte(tx + smallMessage + ".\r\nQUIT\r\n"))
	f.Add([]byte(tx + "x\n.\n" + smuggled))
	f.Add([]byte("MAIL FROM:<alice@example.com> SIZE=1\r\nMAIL FROM:<a@b>\r\nDATA\r\nRSET\r\nBDAT 5\r\nNOOP\r\n"))
	f.Add([]byte("EHLO x\r\nAUTH PLAIN\r\nSTARTTLS\r\nHELP\r\nVRFY x\r\nEXPN x\r\n\x00\r\nNOOP\nNOOP\r\n"))
	ts := startServer(f, func(cfg *Config) { cfg.Handoff, cfg.Log, cfg.System = nil, nil, slog.New(slog.DiscardHandler) })
	ts.queue.discard = true
	f.Fuzz(func(t *testing.T, text []byte) {
		said, queued := runRaw(t, ts, text, 0)
		checkReplies(t, said, queued)
		slow, slowQueued := runRaw(t, ts, text, 1)
		checkReplies(t, slow, slowQueued)
		if slowQueued != queued && !bytes.Contains(bytes.ToUpper(text), []byte("DATA")) {
			t.Errorf("%d messages queued in one piece, %d octet by octet", queued, slowQueued)
		}
		if n := ts.Stats().Panics; n != 0 {
			t.Fatalf("%d panics", n)
		}
	})
}

func checkReplies(t *testing.T, said string, queued int) {
	t.Helper()
	if !strings.HasSuffix(said, "\r\n") {
		t.Fatalf("the last line has no end: %q", said)
	}
	told := 0
	for line := range strings.SplitSeq(strings.TrimSuffix(said, "\r\n"), "\r\n") {
		if len(line) < 4 || line[0] < '2' || line[0] > '5' || line[3] != ' ' && line[3] != '-' || strings.ContainsAny(line, "\r\n\x00") {
			t.Fatalf("not a reply: %q", line)
		}
		if strings.HasPrefix(line, "250 2.0.0 Ok: queued as ") {
			told++
		}
	}
	if told != queued {
		t.Fatalf("%d messages are queued, the client was told of %d", queued, told)
	}
}
