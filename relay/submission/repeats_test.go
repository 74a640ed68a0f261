package submission

import (
	"context"
	"io"
	"log/slog"
	"net"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"postern/auth"
	"postern/internal/logtest"
	"postern/relay/maillog"
)

// TestM6Log floods the server in every way that leaves a line. The log of a thousand tries
// is bounded, and says how many they were.
func TestM6Log(t *testing.T) {
	t.Parallel()
	const tries = 1000
	speak := func(ts *testServer, text string) {
		c := ts.dial(ts.t)
		c.send(text)
		_, _ = io.Copy(io.Discard, c.r) // it may be reset
		_ = c.conn.Close()
	}
	connect := func(t *testing.T, ts *testServer, address, text string) {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(conn, text) // the server may have closed it
		_ = conn.(*net.TCPConn).CloseWrite()
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	}
	// again says line in as many sessions as it takes, and returns once all are heard.
	again := func(begin func() *client, code int, line string) {
		for n := 0; n < tries; {
			c := begin()
			for ; n < tries; n++ {
				c.send(line + "\r\n")
				got, text, err := c.reply()
				if err == nil && got == 421 {
					break
				}
				if err != nil || got != code {
					c.t.Fatalf("%s: %d %s, %v", line, got, text, err)
				}
			}
			_ = c.conn.Close()
		}
	}
	greeted := func(ts *testServer) func() *client {
		return func() *client { c := ts.dialTLS(ts.t); c.cmd(250, "EHLO client.test"); return c }
	}
	verify := func(err error) func(context.Context, string, string) (auth.Identity, error) {
		return func(context.Context, string, string) (auth.Identity, error) { return auth.Identity{}, err }
	}
	long := strings.Repeat("x", 200)
	for name, tc := range map[string]struct {
		octets int // at most
		more   int // counted
		change func(*Config)
		flood  func(t *testing.T, ts *testServer)
	}{
		"http": {2000, tries - 1, nil, func(t *testing.T, ts *testServer) {
			for range tries {
				speak(ts, "GET / HTTP/1.1\r\n")
			}
		}},
		"behind STARTTLS": {2000, tries - 1, nil, func(t *testing.T, ts *testServer) {
			for range tries {
				speak(ts, "EHLO a\r\nSTARTTLS\r\nNOOP\r\n")
			}
		}},
		"silence": {0, 0, nil, func(t *testing.T, ts *testServer) {
			for range tries {
				connect(t, ts, ts.clear.Addr().String(), "")
			}
		}},
		"handshake": {0, 0, nil, func(t *testing.T, ts *testServer) {
			for range tries {
				connect(t, ts, ts.implicit.Addr().String(), "no TLS at all")
			}
		}},
		"refused connections": {2000, tries - 1, func(cfg *Config) { cfg.Limits.ConnectionsPerAddress = 1 }, func(t *testing.T, ts *testServer) {
			ts.dial(t)
			for range tries {
				connect(t, ts, ts.clear.Addr().String(), "")
			}
		}},
		"no PROXY header": {2000, tries - 1, behind, func(t *testing.T, ts *testServer) {
			for range tries {
				connect(t, ts, ts.clear.Addr().String(), long)
			}
		}},
		"no balancer": {2000, tries - 1, behind, func(t *testing.T, ts *testServer) {
			for range tries {
				c := dialFrom(t, ts, "127.0.0.2")
				_, _ = io.Copy(io.Discard, c.r)
				_ = c.conn.Close()
			}
		}},
		"malformed AUTH": {2000, tries - 1, nil, func(t *testing.T, ts *testServer) {
			again(greeted(ts), 501, "AUTH PLAIN "+strings.Repeat("AAAA", 90))
		}},
		"busy AUTH": {2000, tries - 1, nil, func(t *testing.T, ts *testServer) {
			ts.verifier.verify = verify(auth.ErrBusy)
			again(greeted(ts), 454, "AUTH PLAIN "+plain(long, "x"))
		}},
		"unavailable AUTH": {2000, tries - 1, nil, func(t *testing.T, ts *testServer) {
			ts.verifier.verify = verify(auth.ErrUnavailable)
			again(greeted(ts), 454, "AUTH PLAIN "+plain(long, "x"))
		}},
		"wrong passwords": {20_000, tries - 20, nil, func(t *testing.T, ts *testServer) {
			again(greeted(ts), 535, "AUTH PLAIN "+plain(long, "x"))
		}},
		"refused MAIL": {120_000, tries - 100, nil, func(t *testing.T, ts *testServer) {
			again(func() *client { return ts.login(ts.t) }, 550, "MAIL FROM:<"+long[:60]+"@example.org>")
		}},
		"refused RCPT": {120_000, tries - 100, nil, func(t *testing.T, ts *testServer) {
			again(func() *client {
				c := ts.login(ts.t)
				c.cmd(250, "MAIL FROM:<alice@example.com>")
				return c
			}, 501, "RCPT TO:<"+long[:60]+">")
		}},
		"gibberish": {20_000, 0, func(cfg *Config) { cfg.Limits.BadCommands = 20 }, func(t *testing.T, ts *testServer) {
			again(func() *client { return ts.login(ts.t) }, 500, long)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			info := &logtest.Lines{}
			log := slog.New(slog.NewJSONHandler(info, nil))
			mail := maillog.New(log)
			ts := startServer(t, func(cfg *Config) {
				cfg.Log, cfg.System, cfg.Limits.ConnectionsPerAddress = mail, log, 2*tries
			}, func(cfg *Config) {
				if tc.change != nil {
					tc.change(cfg)
				}
			})
			tc.flood(t, ts)
			if err := <-ts.shutdownIn(patience); err != nil {
				t.Error(err)
			}
			mail.Flush()
			text := info.String()
			counts := regexp.MustCompile(`"more":(\d+)}`).FindAllStringSubmatch(text, -1)
			minutes, more := max(1, len(counts)), 0 // on a slow machine
			for _, c := range counts {
				n, err := strconv.Atoi(c[1])
				if err != nil {
					t.Fatal(err)
				}
				more += n
			}
			if len(text) > minutes*tc.octets {
				t.Errorf("%d octets of log in %d minutes, want at most %d a minute:\n%.3000s", len(text), minutes, tc.octets, text)
			}
			if tc.more > 0 && more < tries-minutes*(tries-tc.more) {
				t.Errorf("%d are counted in %d minutes, want %d in one:\n%s", more, minutes, tc.more, text[max(0, len(text)-1000):])
			}
		})
	}
}

// TestM6PutOff: a session in which AUTH is put off again and again ends.
func TestM6PutOff(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.BadCommands = 3 })
	ts.verifier.verify = func(context.Context, string, string) (auth.Identity, error) { return auth.Identity{}, auth.ErrBusy }
	c := ts.dialTLS(t)
	c.cmd(250, "EHLO client.test")
	for range 3 {
		c.cmd(454, "AUTH PLAIN "+plain("alice@example.com", "secret"))
	}
	if text := c.cmd(421, "NOOP"); !strings.Contains(text, "attempts to authenticate") {
		t.Errorf("421 %s", text)
	}
	c.expectClosed()
}
