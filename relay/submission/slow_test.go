package submission

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/logtest"
	"postern/relay/maillog"
)

// pipeListener hands out connections that are made in memory, so that a test can
// run on synctest's clock.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 587} }

func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

// timed is a server on synctest's clock.
type timed struct {
	t     *testing.T
	clear *pipeListener
	tls   *pipeListener
	queue *fakeQueue
	*Server
	clients sync.WaitGroup // what runs beside the test
	log     logtest.Lines
	panics  int64 // expected
}

// onFakeTime runs test against a server whose clock is synctest's. The server is
// shut down at the end; what it leaves running fails the bubble.
func onFakeTime(t *testing.T, change func(*Config), test func(ts *timed)) {
	t.Helper()
	certs, dir := testCertificates(), t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		ts := &timed{t: t, clear: newPipeListener(), tls: newPipeListener(), queue: &fakeQueue{}}
		cfg := Config{
			Hostname: "relay.test",
			Listeners: []Listener{
				{Net: ts.clear, TLS: STARTTLS}, {Net: ts.tls, TLS: Implicit},
			},
			Certificates: certs, Verifier: &fakeVerifier{}, Queue: ts.queue,
			Log: maillog.New(ts.log.Logger()), System: ts.log.Logger(), TempDir: dir,
		}
		if change != nil {
			change(&cfg)
		}
		var err error
		if ts.Server, err = New(cfg); err != nil {
			t.Fatal(err)
		}
		ts.clients.Go(func() { ts.Serve() })
		test(ts)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := ts.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		ts.clients.Wait()
		if st := ts.Stats(); st.Panics != ts.panics || st.Memory != 0 || st.TempFiles != 0 {
			t.Errorf("left at the end: %+v", st)
		}
	})
}

// connect connects in clear and reads the greeting.
func (ts *timed) connect() *client {
	c := &client{t: ts.t, conn: ts.clear.dial()}
	c.r = bufio.NewReader(c.conn)
	c.expect(220)
	return c
}

// login connects with TLS and authenticates.
func (ts *timed) login() *client {
	conn := tls.Client(ts.tls.dial(), insecure())
	c := &client{t: ts.t, conn: conn, r: bufio.NewReader(conn)}
	c.expect(220)
	c.cmd(250, "EHLO client.test")
	c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	return c
}

// drip writes text one octet each interval until the server is gone.
func (ts *timed) drip(c *client, text string, interval time.Duration) {
	ts.clients.Go(func() {
		for i := range len(text) {
			time.Sleep(interval)
			if _, err := c.conn.Write([]byte{text[i]}); err != nil {
				return
			}
		}
	})
}

// ends reads up to the end, wants the last reply to have the code, and returns how
// long it took.
func (c *client) ends(code int) time.Duration {
	c.t.Helper()
	started := time.Now()
	last := 0
	for {
		got, text, err := c.reply()
		if err != nil {
			if text != "" {
				c.t.Errorf("half a reply: %q", text)
			}
			break
		}
		last = got
	}
	if last != code {
		c.t.Errorf("the last word was %d, want %d", last, code)
	}
	c.conn.Close()
	return time.Since(started)
}

// wantAbout fails unless a wait was as long as it should be.
func wantAbout(t *testing.T, what string, got, want time.Duration) {
	t.Helper()
	if got < want-2*time.Second || got > want+2*time.Second {
		t.Errorf("%s took %v, want about %v", what, got, want)
	}
}

// TestA9Command sends a command one octet each 10 s: the line has 5 minutes.
func TestA9Command(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		c := ts.login()
		ts.drip(c, strings.Repeat("NOOP", 1000), 10*time.Second)
		wantAbout(ts.t, "a slow command", c.ends(421), 5*time.Minute)
	})
}

// TestA9Login: what never authenticates has 5 minutes, however busy it looks.
func TestA9Login(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		c := ts.connect()
		ts.drip(c, strings.Repeat("NOOP\r\n", 1000), 2*time.Second)
		wantAbout(ts.t, "a session without AUTH", c.ends(421), 5*time.Minute)
	})
}

// TestA9Session: a session is over after 2 hours, though it is used.
func TestA9Session(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		c := ts.login()
		ts.drip(c, strings.Repeat("NOOP\r\n", 1000), 10*time.Second)
		wantAbout(ts.t, "a long session", c.ends(421), 2*time.Hour)
	})
}

// TestA9Data sends a message at one octet each second: a minute's grace, and then
// the pace is not kept. Nothing is queued, and nothing of the body is run.
func TestA9Data(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		c := ts.login()
		c.envelope()
		ts.drip(c, strings.Repeat("MAIL FROM:<alice@example.com>\r\n", 100), time.Second)
		wantAbout(ts.t, "a slow message", c.ends(421), time.Minute)
		if n := ts.queue.len(); n != 0 {
			ts.t.Errorf("%d messages are queued", n)
		}
	})
}

// TestA9DataSteady: a sender that keeps the pace is not cut, however long it takes.
func TestA9DataSteady(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		c := ts.login()
		c.envelope()
		c.send("From: alice@example.com\r\nSubject: slow\r\n\r\n")
		line := strings.Repeat("x", 598) + "\r\n"
		for range 1800 { // half an hour
			time.Sleep(time.Second)
			c.send(line)
		}
		c.send(".\r\n")
		c.expect(250)
		c.conn.Close()
	})
}

// TestA9DataStall sends much and then nothing: the next octets have 3 minutes.
func TestA9DataStall(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		c := ts.login()
		c.envelope()
		c.send("Subject: stall\r\n\r\n" + strings.Repeat(strings.Repeat("x", 998)+"\r\n", 500))
		wantAbout(ts.t, "a stalled message", c.ends(421), 3*time.Minute)
		if n := ts.queue.len(); n != 0 {
			ts.t.Errorf("%d messages are queued", n)
		}
	})
}

// TestA9Handshake stops in the middle of the ClientHello, on both kinds of listener.
func TestA9Handshake(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		conn := ts.tls.dial()
		started := time.Now()
		conn.Write([]byte{22, 3, 1, 2, 0, 1})
		io.ReadAll(conn)
		wantAbout(ts.t, "half a ClientHello", time.Since(started), 10*time.Second)

		c := ts.connect()
		c.cmd(250, "EHLO client.test")
		c.cmd(220, "STARTTLS")
		started = time.Now()
		io.ReadAll(c.conn)
		wantAbout(ts.t, "no ClientHello", time.Since(started), 10*time.Second)
	})
}

// TestA9NeverReads pipelines commands and takes no reply.
func TestA9NeverReads(t *testing.T) {
	onFakeTime(t, nil, func(ts *timed) {
		conn := ts.clear.dial()
		started := time.Now()
		one := make([]byte, 1)
		io.ReadFull(conn, one) // the greeting has begun and will not be read on
		_, err := io.Copy(conn, io.LimitReader(repeat("NOOP\r\n"), 600_000))
		if err == nil {
			ts.t.Error("all commands were taken")
		}
		wantAbout(ts.t, "a client that does not read", time.Since(started), time.Minute)
		conn.Close()
	})
}

// repeat is an endless reader of text.
type repeat string

func (r repeat) Read(p []byte) (int, error) {
	n := 0
	for n+len(r) <= len(p) {
		n += copy(p[n:], r)
	}
	if n == 0 {
		n = copy(p, r)
	}
	return n, nil
}

// TestA9HalfClose: a client that closes its sending side is not waited for.
func TestA9HalfClose(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.dial(t)
	c.cmd(250, "EHLO client.test")
	if err := c.conn.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	c.expectClosed()
	waitFor(t, "the session is gone", func() bool { return ts.Stats().Open == 0 })
}

// faultyListener fails with an error for a while and then serves.
type faultyListener struct {
	*pipeListener
	failUntil time.Time
	err       error
	calls     int
}

func (l *faultyListener) Accept() (net.Conn, error) {
	l.calls++
	if time.Now().Before(l.failUntil) {
		return nil, l.err
	}
	return l.pipeListener.Accept()
}

// TestA10AcceptBackoff: out of descriptors, the loop waits longer and longer, and
// serves within a second once there are some.
func TestA10AcceptBackoff(t *testing.T) {
	certs := testCertificates()
	synctest.Test(t, func(t *testing.T) {
		l := &faultyListener{pipeListener: newPipeListener(), failUntil: time.Now().Add(10 * time.Second), err: errors.New("too many open files")}
		var log logtest.Lines
		s, err := New(Config{
			Hostname: "relay.test", Listeners: []Listener{{Net: l, TLS: STARTTLS, Name: "submission"}}, Certificates: certs,
			Verifier: &fakeVerifier{}, Queue: &fakeQueue{}, System: log.Logger(),
		})
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve()
		time.Sleep(9900 * time.Millisecond)
		synctest.Wait()
		if n := s.Stats().AcceptErrors; n < 10 || n > 20 {
			t.Errorf("accept was tried %d times in 10 s", n)
		}
		if n := log.Count("accept failed"); n != 1 {
			t.Errorf("the trouble was logged %d times", n)
		}
		started := time.Now()
		conn := l.dial()
		c := &client{t: t, conn: conn, r: bufio.NewReader(conn)}
		c.expect(220)
		if d := time.Since(started); d > 1100*time.Millisecond {
			t.Errorf("served only after %v", d)
		}
		c.cmd(221, "QUIT")
		if err := s.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
	})
}
