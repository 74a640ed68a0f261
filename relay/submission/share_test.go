package submission

import (
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/auth"
)

// TestH3ShareOfMemory: many sessions of one user that hold what they can leave room for
// the message of another.
func TestH3ShareOfMemory(t *testing.T) {
	t.Parallel()
	for _, where := range []string{"memory", "files"} {
		t.Run(where, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t, func(cfg *Config) {
				cfg.Limits.Memory, cfg.Limits.TempFiles = 4<<20, 16<<20
				if where == "files" {
					cfg.Limits.Memory, cfg.Limits.MemoryBody = 64<<20, 10<<10
				}
				cfg.Handoff = nil
			})
			ts.verifier.verify = byName
			var greedy []*client
			for range 60 {
				c := ts.loginAs(t, "greedy@example.com", "127.0.0.1")
				c.envelope()
				c.send(sized(830_000)) // and no end
				greedy = append(greedy, c)
			}
			full := func() bool {
				memory, files := ts.spool.memory, ts.spool.files
				return where == "memory" && memory.Full(1<<20, userOf(1)) || where == "files" && files.Full(1<<20, userOf(1))
			}
			waitFor(t, "the greedy user has its share", full)
			other := ts.loginAs(t, "other@example.com", "127.0.0.2")
			other.envelope()
			other.send(sized(50_000) + ".\r\n")
			other.expect(250)
			for _, c := range greedy {
				_ = c.conn.Close()
			}
		})
	}
}

// byName knows two users, 1 and 2, by what the name begins with.
func byName(_ context.Context, name, _ string) (auth.Identity, error) {
	id := auth.Identity{UserID: 2, Name: name, Senders: []string{"alice@example.com"}}
	if strings.HasPrefix(name, "greedy") {
		id.UserID = 1
	}
	return id, nil
}

// loginAs logs a user in from a loopback address.
func (ts *testServer) loginAs(t *testing.T, name, ip string) *client {
	t.Helper()
	c := dialFrom(t, ts, ip)
	c.expect(220)
	c.cmd(250, "EHLO client.test")
	c.startTLS()
	c.cmd(250, "EHLO client.test")
	c.cmd(235, "AUTH PLAIN "+plain(name, "secret"))
	return c
}

// TestH3SlowData: when memory is short, messages that crawl are given up if their user
// has its whole share, within seconds and not minutes; without need they are not.
func TestH3SlowData(t *testing.T) {
	t.Parallel()
	w := &wire{}
	w.inData.Store(true)
	var l slowness
	fell := 0
	for i := range 30 {
		w.received.Add(3)
		if l.look(w, 500) {
			fell++
			if i < stressData-1 {
				t.Errorf("given up after %d looks", i+1)
			}
		}
	}
	if fell == 0 {
		t.Error("three octets a second pass for 500")
	}
	w.received.Add(100_000)
	if l.look(w, 500) {
		t.Error("a message that moves again is given up")
	}
	w.inData.Store(false)
	for range 30 {
		if l.look(w, 500) {
			t.Fatal("a session without a message is given up for being slow")
		}
	}
}

// TestH3Credit: a message that came fast at first may not be slow for long.
func TestH3Credit(t *testing.T) {
	t.Parallel()
	l := Limits{}.withDefaults()
	now := time.Now()
	p := newPace(now, &l)
	p.octets = 20 << 20 // eleven hours at 500 octets a second
	if due := p.deadline(now, &l); due.After(now.Add(l.DataRead)) {
		t.Errorf("patience for %s", due.Sub(now))
	}
	for range 7 { // three octets each half minute
		now = now.Add(30 * time.Second)
		p.octets = 3
		if due := p.deadline(now, &l); !due.After(now) {
			return
		}
	}
	t.Error("a message that crawls is waited for")
}

// TestM3HeaderIsCharged: what a header section takes beyond the first 16 KiB is counted,
// refused when there is no room, and given back.
func TestM3HeaderIsCharged(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	c.envelope()
	c.send("From: alice@example.com\r\n" + strings.Repeat("X: "+strings.Repeat("x", 900)+"\r\n", 250)) // and no end
	waitFor(t, "the header is counted", func() bool { return ts.Stats().Memory >= 256<<10 })
	c.send("\r\ntext\r\n.\r\n")
	c.expect(250)
	ts.handoff.finish()
	waitFor(t, "it is given back", func() bool { return ts.Stats().Memory == 0 })

	small := startServer(t, func(cfg *Config) { cfg.Limits.Memory = 64 << 10 })
	c = small.login(t)
	c.envelope()
	c.send("From: alice@example.com\r\n" + strings.Repeat("X: "+strings.Repeat("x", 900)+"\r\n", 250) + "\r\ntext\r\n.\r\n")
	c.expect(452)
	c.cmd(250, "NOOP")
	waitFor(t, "what was refused is given back", func() bool { return small.Stats().Memory == 0 })
}

// TestM7EnvelopeIsCharged: a long envelope counts before it is there; RCPT is refused for
// now when there is no room, and what was charged comes back however the transaction ends.
func TestM7EnvelopeIsCharged(t *testing.T) {
	t.Parallel()
	for _, end := range []string{"RSET", "EHLO client.test", "QUIT", ""} {
		t.Run(end, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t, func(cfg *Config) {
				cfg.Limits.Memory, cfg.Limits.Recipients = 256<<10, 1000
			})
			c := ts.login(t)
			c.cmd(250, "MAIL FROM:<alice@example.com>")
			taken, refused := 0, 0
			for i := range 300 {
				c.send(fmt.Sprintf("RCPT TO:<r%d@example.net> ORCPT=rfc822;%s\r\n", i, strings.Repeat("o", 480)))
				switch code, text, err := c.reply(); {
				case err != nil:
					t.Fatal(err)
				case code == 250:
					taken++
				case code == 452 && strings.HasPrefix(text, "4.3.1"):
					refused++
				default:
					t.Fatalf("%d %s", code, text)
				}
			}
			if held := ts.Stats().Memory; refused == 0 || held > 256<<10*2/3+envelopeStep || held < int64(taken-10)*880 {
				t.Errorf("%d taken, %d refused, %d octets counted", taken, refused, held)
			}
			if end == "" {
				_ = c.conn.Close()
			} else {
				c.send(end + "\r\n")
			}
			waitFor(t, "it is given back", func() bool { return ts.Stats().Memory == 0 })
		})
	}
}

// TestM7RecipientTakes: a recipient takes no more than it is counted for.
func TestM7RecipientTakes(t *testing.T) {
	const n = 2000
	inUse := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Recipients = n })
	c := ts.login(t)
	c.cmd(250, "MAIL FROM:<alice@example.com>")
	before := inUse()
	for i := range n {
		c.cmd(250, fmt.Sprintf("RCPT TO:<r%d@example.net> ORCPT=rfc822;%s", i, strings.Repeat("o", 480)))
	}
	taken, counted := (inUse()-before)/n, ts.Stats().Memory/n
	t.Logf("a recipient takes %d octets and counts for %d", taken, counted)
	if taken > counted*5/4 {
		t.Error("it counts for too little")
	}
	c.cmd(221, "QUIT")
}

// TestM4Stress: silent connections from many addresses give way when places are short,
// one from a network that is new finds a place, and those that have logged in stay.
func TestM4Stress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newPeers(100, 20)
		network := func(i int) netip.Prefix {
			return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32)
		}
		in := 0
		for i := range 20 {
			for c.enter(tally{network(i), true}) == noCrowd {
				in++
			}
		}
		if !c.pressed() {
			t.Errorf("no pressure with %d of 100 places taken", in)
		}
		if in > 90 {
			t.Errorf("strangers took %d of 100 places, want 90 at most", in)
		}
		home := network(200)
		c.know(home)
		for i := 100; c.enter(tally{network(i), true}) == noCrowd; i++ {
		}
		if full := c.enter(tally{home, true}); full != noCrowd {
			t.Error("no place for a network from which somebody has logged in")
		}
		time.Sleep(knownTime)
		if c.knows(home) {
			t.Error("a network is known for ever")
		}
	})
}

// TestM4StrangersOneAfterAnother: each address that fills its share leaves a third of what it
// found, of the places that are for strangers, so that the fourth finds one.
func TestM4StrangersOneAfterAnother(t *testing.T) {
	t.Parallel()
	c := newPeers(30, 100)
	network := func(i int) netip.Prefix { return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 32) }
	for i := range 3 {
		for c.enter(tally{network(i), true}) == noCrowd {
		}
	}
	if full := c.enter(tally{network(3), true}); full != noCrowd {
		t.Errorf("no place for the fourth: %v", full)
	}
	// A client behind a load balancer is counted in all before it is known who it is.
	behind := newPeers(30, 100)
	join := func(i int) crowd {
		if full := behind.enter(tally{}); full != noCrowd {
			t.Fatalf("no place for a balancer's connection: %v", full)
		}
		full := behind.enterNetwork(network(i))
		if full != noCrowd {
			behind.leave(tally{})
		}
		return full
	}
	for i := range 3 {
		for join(i) == noCrowd {
		}
	}
	if full := join(3); full != noCrowd {
		t.Errorf("no place for the fourth behind a balancer: %v", full)
	}
}

// TestM4KnownFromTheStart: a restart does not make strangers of those who logged in before.
func TestM4KnownFromTheStart(t *testing.T) {
	t.Parallel()
	home := netip.MustParsePrefix("192.0.2.1/32")
	ts := startServer(t, func(cfg *Config) { cfg.Known = []netip.Prefix{home} })
	if !ts.peers.knows(home) || ts.peers.knows(netip.MustParsePrefix("192.0.2.2/32")) {
		t.Error("not the addresses that were given")
	}
}

// TestM4SilentGiveWay: under pressure a client that has not logged in after ten seconds
// goes; one that has stays.
func TestM4SilentGiveWay(t *testing.T) {
	t.Parallel()
	ts := startServer(t, func(cfg *Config) { cfg.Limits.Connections = 8 })
	logged, silent := ts.login(t), ts.dial(t)
	others := []*client{dialFrom(t, ts, "127.0.0.2"), dialFrom(t, ts, "127.0.0.3"), dialFrom(t, ts, "127.0.0.4"), dialFrom(t, ts, "127.0.0.5"), dialFrom(t, ts, "127.0.0.6")}
	for _, c := range others {
		c.expect(220)
	}
	ts.peers.mu.Lock()
	clear(ts.peers.known) // silent shares its address with one that has logged in
	ts.peers.mu.Unlock()
	ts.Server.mu.Lock()
	for x := range ts.sessions {
		if x.sharing.Load() == nil {
			x.wire.known.Store(false)
		}
	}
	ts.Server.mu.Unlock()
	ts.relieve(time.Now().Add(stressLogin - time.Second))
	silent.cmd(250, "NOOP")
	ts.relieve(time.Now().Add(stressLogin + time.Minute))
	for _, c := range append(others, silent) { // each session counts itself, and then says so
		c.expect(421)
		c.expectClosed()
	}
	logged.cmd(250, "NOOP")
	if n := ts.Stats().Expelled; n != 6 {
		t.Errorf("%d gave way, want 6", n)
	}
}
