package submission

import (
	"net/netip"
	"testing"
)

// reconfigure changes what the server was made with.
func (ts *testServer) reconfigure(t *testing.T, change func(*Config)) {
	t.Helper()
	cfg := ts.cfg
	cfg.Listeners = append([]Listener(nil), cfg.Listeners...)
	change(&cfg)
	if err := ts.Reconfigure(cfg); err != nil {
		t.Fatal(err)
	}
}

// TestReconfigure: new sessions have the new settings, those that are open keep theirs.
func TestReconfigure(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	open := ts.login(t)
	ts.reconfigure(t, func(cfg *Config) {
		cfg.Limits.Recipients, cfg.Limits.MessageSize, cfg.HideClient = 1, 2000, true
		cfg.Listeners[1].NormalizeBareLF, cfg.Listeners[1].TolerateBrackets = true, true
	})
	later := ts.login(t)
	open.cmd(501, "MAIL FROM:alice@example.com")
	later.cmd(250, "MAIL FROM:alice@example.com")
	later.cmd(250, "RSET")
	for _, c := range []*client{open, later} {
		c.cmd(250, "MAIL FROM:<alice@example.com>")
		c.cmd(250, "RCPT TO:<bob@example.net>")
	}
	open.cmd(250, "RCPT TO:<carol@example.net>")
	later.cmd(452, "RCPT TO:<carol@example.net>")
	for i, c := range []*client{open, later} {
		c.cmd(354, "DATA")
		c.send("From: alice@example.com\r\nSubject: bare\nLF\r\n\r\nx\r\n.\r\n")
		c.expect([]int{554, 250}[i])
	}
	if m := ts.queue.all(); len(m) != 1 || m[0].ClientAddr.String() != "127.0.0.1" {
		t.Errorf("queued: %+v", m)
	}
	later.cmd(552, "MAIL FROM:<alice@example.com> SIZE=3000")
	if n := ts.Stats().MessageSize; n != 2000 {
		t.Errorf("a message may have %d octets, want 2000", n)
	}
}

// TestReconfigureSharedBounds: what bounds all sessions together holds immediately.
func TestReconfigureSharedBounds(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	open := []*client{ts.login(t), ts.login(t)}
	ts.reconfigure(t, func(cfg *Config) { cfg.Limits.ConnectionsPerAddress, cfg.Limits.Memory = 2, 1 })
	dialFrom(t, ts, "127.0.0.1").expect(421)
	open[0].cmd(452, "MAIL FROM:<alice@example.com>")
	ts.reconfigure(t, func(cfg *Config) { cfg.Limits.ConnectionsPerAddress = 3 })
	ts.dial(t).cmd(221, "QUIT")
	open[1].cmd(250, "MAIL FROM:<alice@example.com>")
}

// TestReconfigureProxies: a listener may come to stand behind a load balancer.
func TestReconfigureProxies(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	direct := ts.dial(t)
	ts.reconfigure(t, behind)
	ts.through(t, line4).expect(220)
	direct.cmd(250, "EHLO client.test") // it is counted as it came
	direct.cmd(221, "QUIT")
	ts.reconfigure(t, func(cfg *Config) {
		cfg.Listeners[0].Proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	})
	ts.through(t, line4).expectClosed()
	ts.reconfigure(t, func(*Config) {})
	ts.dial(t).cmd(221, "QUIT")
	waitFor(t, "the places are given back", func() bool {
		used, _ := ts.peers.places.Use()
		return used == 1
	})
}

func TestReconfigureOtherListeners(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	cfg := ts.cfg
	cfg.Listeners = cfg.Listeners[:1]
	cfg.Limits.Commands = 1
	if err := ts.Reconfigure(cfg); err == nil {
		t.Error("a listener may be missing")
	}
	c := ts.login(t) // more than one command
	c.cmd(221, "QUIT")
}
