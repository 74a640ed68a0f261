package delivery

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// windowAt is a window whose places are all in use.
func windowAt(limit int) *window {
	w := newWindow(limit)
	w.limit, w.proven, w.used = limit, limit, limit
	return w
}

// dots is a server that answers the final dot after a time.
func dots(after time.Duration, hooks map[smtptest.Phase]smtptest.Hook) *smtptest.Server {
	all := map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Always(smtptest.Then(smtptest.Delay(after), smtptest.Normal()))}
	for phase, hook := range hooks {
		all[phase] = hook
	}
	return smtptest.New(smtptest.Config{Hooks: all})
}

// unbounded is an upstream without a number of connections of its own.
func unbounded() *upstream.Account {
	up := *piped
	up.MaxConnections = 0
	return &up
}

// unboundedEngine is an engine whose upstream, server, may have as many connections as it is worth.
// Both end with the test.
func unboundedEngine(t *testing.T, server *smtptest.Server) (*fakeQueue, *Engine) {
	t.Helper()
	q := newFakeQueue()
	e := newEngine(q, Config{Routes: routes{def: unbounded()}, NoClaim: true})
	pipes(e, server)
	e.Start()
	t.Cleanup(func() {
		stop(t, e)
		server.Close()
	})
	return q, e
}

// offer takes n messages and says how long it takes to deliver them.
func offer(t *testing.T, q *fakeQueue, e *Engine, n int) time.Duration {
	t.Helper()
	before, began := len(q.results()), time.Now()
	for range n {
		e.Take(message(t, "a@one.test"))
	}
	q.waitEnded(t, before+n)
	for _, o := range q.results() {
		if o.Result != queue.Delivered {
			t.Fatalf("%+v", o)
		}
	}
	return time.Since(began)
}

// TestWindowGrows: a server that answers the dot after 50 ms soon has the most connections that
// it may, and one that answers after 1 ms no more than it can use; a single message has one.
func TestWindowGrows(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		dot         time.Duration
		messages    int
		most, least int           // connections
		within      time.Duration // with 20 connections from the beginning
	}{
		{50 * time.Millisecond, 1, 1, 1, 50 * time.Millisecond},
		{50 * time.Millisecond, 200, 100, 40, 500 * time.Millisecond},
		{50 * time.Millisecond, 2000, 100, 100, 5 * time.Second},
		{10 * time.Millisecond, 2000, 50, 50, time.Second},
		{time.Millisecond, 5000, plenty, begin, 350 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("%d after %s", test.messages, test.dot), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := dots(test.dot, nil)
				q, e := unboundedEngine(t, server)
				took := offer(t, q, e, test.messages)
				if n := server.PeakConns(); n < test.least || n > test.most {
					t.Errorf("%d connections, want %d to %d", n, test.least, test.most)
				}
				if took > test.within {
					t.Errorf("it took %s, with 20 connections %s", took, test.within)
				}
			})
		})
	}
}

// TestWindowOfAServerThatBecomesQuick: connections that were worth having end when they are not.
func TestWindowOfAServerThatBecomesQuick(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var dot atomic.Int64
		dot.Store(int64(50 * time.Millisecond))
		server := dots(0, map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: func(smtptest.Session) smtptest.Action {
			return smtptest.Then(smtptest.Delay(time.Duration(dot.Load())), smtptest.Normal())
		}})
		q, e := unboundedEngine(t, server)
		offer(t, q, e, 2000)
		dot.Store(int64(time.Millisecond))
		for range 4 {
			offer(t, q, e, 500)
			time.Sleep(7 * time.Second) // less than connections are kept
		}
		if n := e.Stats().Upstream.Connections; n > 2*plenty {
			t.Errorf("%d connections to a server that answers after 1 ms", n)
		}
	})
}

// TestWindowIsKept: what a server took is remembered for minutes without mail, and not for ever.
func TestWindowIsKept(t *testing.T) {
	t.Parallel()
	for idle, want := range map[time.Duration]int{4 * time.Minute: 60, 6 * time.Minute: begin} {
		synctest.Test(t, func(t *testing.T) {
			server := dots(50*time.Millisecond, nil)
			q, e := unboundedEngine(t, server)
			offer(t, q, e, 2000)
			time.Sleep(idle)
			before := server.Conns()
			for range 60 {
				e.Take(message(t, "a@one.test"))
			}
			time.Sleep(time.Millisecond)
			synctest.Wait()
			// A worker that is hired for a message may find that another one has taken it.
			if n := server.Conns() - before; n < want || want == begin && n > want {
				t.Errorf("after %s: %d connections, want %d", idle, n, want)
			}
			q.waitEnded(t, 2060)
		})
	}
}

// TestWindowShrinks: replies by which the server wants less of us halve the window, once a second,
// and growth pauses; what a server says of the mail does not.
func TestWindowShrinks(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		phase smtptest.Phase
		reply string
		halve bool
	}{
		{smtptest.PhaseMail, "451 4.7.1 too much mail from you", true},
		{smtptest.PhaseRcpt, "421 4.7.0 try again later", true},
		{smtptest.PhaseDot, "421 4.3.2 too many messages", true},
		{smtptest.PhaseMail, "450 4.2.1 mailbox busy", false},
		{smtptest.PhaseRcpt, "450 4.2.0 greylisted", false},
		{smtptest.PhaseRcpt, "451 4.7.1 greylisted, try again", false},
		{smtptest.PhaseRcpt, "550 5.7.1 no", false},
		{smtptest.PhaseDot, "451 4.7.1 greylisted, try again", false},
		{smtptest.PhaseDot, "451 4.3.0 trouble", false},
	} {
		synctest.Test(t, func(t *testing.T) {
			server := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{test.phase: smtptest.Always(smtptest.Reply(test.reply))}})
			defer server.Close()
			q := newFakeQueue()
			e := newEngine(q, Config{Routes: routes{def: unbounded()}, NoClaim: true})
			pipes(e, server)
			w := e.windows.join(queue.Way("sink", ""), 100)
			w.limit, w.proven = 80, 80
			e.Start()
			defer stop(t, e)
			defer func() {
				if is := e.Windows(); len(is) != 1 || is[0].Upstream != "sink" || is[0].Places != w.limit || is[0].Connections != w.used {
					t.Errorf("%+v, want %d of %d", is, w.used, w.limit)
				}
			}()
			for n, most := 0, 80; n < 3; n++ {
				e.Take(message(t, "a@one.test"))
				e.Take(message(t, "b@one.test"))
				q.waitEnded(t, 2*n+2)
				if test.halve {
					most /= 2
				}
				// A conversation that is cut off takes a place more, and several suspend the destination.
				if w.limit > most || n == 0 && w.limit < most-4 || !test.halve && w.limit != most {
					t.Errorf("%s: %s: after %d messages %d connections of %d", test.phase, test.reply, 2*n+2, w.limit, most)
				}
				time.Sleep(2 * time.Second)
			}
		})
	}
}

// TestWantsLess judges temporary replies by the tables.
func TestWantsLess(t *testing.T) {
	t.Parallel()
	at := func(r string) (reply [4]int) {
		fmt.Sscanf(r, "%d %d.%d.%d", &reply[0], &reply[1], &reply[2], &reply[3])
		return reply
	}
	for _, test := range []struct {
		preset string // "": MX
		stage  upstream.Stage
		reply  string
		text   string
		want   bool
	}{
		{"", upstream.StageRcpt, "421 4.3.2", "", true},
		{"", upstream.StageMail, "450 4.7.1", "", true},
		{"", upstream.StageRcpt, "450 4.7.1", "", false},
		{"", upstream.StageDot, "451 4.7.1", "", false},
		{"", upstream.StageRcpt, "451 4.7.650", "the mail server [192.0.2.1] has been temporarily rate limited", true},
		{"", upstream.StageRcpt, "452 4.2.2", "full", false},
		{"", upstream.StageMail, "452 4.3.1", "", false},
		{"m365", upstream.StageDot, "432 4.3.2", "concurrent connections limit", true},
		{"m365", upstream.StageDot, "451 4.7.500", "server busy", true},
		{"google", upstream.StageRcpt, "450 4.2.1", "receiving mail too quickly", false},
	} {
		var table *upstream.Replies
		if test.preset != "" {
			table = upstream.Table(test.preset)
		}
		n := at(test.reply)
		r := smtp.Temporary(n[0], n[2], n[3], test.text)
		if got := wantsLess(table, test.stage, r); got != test.want {
			t.Errorf("%s at %s, %q: %t", r, test.stage, test.preset, got)
		}
	}
}

// hosted makes an engine whose domains d0.test, d1.test, … have the same mail host, but for other.test.
// peak is the most connections at a time.
func hosted(q *fakeQueue, server *smtptest.Server, domains int, cfg Config) (e *Engine, peak *atomic.Int64) {
	dns := &dnstest.Zones{}
	for i := range domains {
		domain := fmt.Sprintf("d%d.test", i)
		dns.AddMX(domain, 10, "MX1.provider.test.")
		dns.AddMX(domain, 10, "mx2.provider.test.")
		dns.AddMX(domain, 20, "backup."+domain+".")
	}
	dns.AddHost("mx1.provider.test", "198.51.100.1")
	dns.AddHost("mx2.provider.test", "198.51.100.2")
	cfg.Connect.DNS, cfg.Routes, cfg.NoClaim = dns.Resolver(), routes{}, true
	e = newEngine(q, cfg)
	var open atomic.Int64
	peak = new(atomic.Int64)
	e.dialer.Dial = func(context.Context, connect.Target) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go server.ServeConn(theirs)
		peak.Store(max(peak.Load(), open.Add(1)))
		return &closes{Conn: ours, closed: sync.OnceFunc(func() { open.Add(-1) })}, nil
	}
	return e, peak
}

// closes is a connection that says when it is closed.
type closes struct {
	net.Conn
	closed func()
}

func (c *closes) Close() error {
	c.closed()
	return c.Conn.Close()
}

// TestSite: fifty domains with the same mail hosts share one window, and none of them waits for
// the end of another's line.
func TestSite(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := dots(50*time.Millisecond, nil)
		defer server.Close()
		q := newFakeQueue()
		e, peak := hosted(q, server, 50, Config{})
		e.Start()
		defer stop(t, e)
		for i := range 50 {
			e.Take(message(t, fmt.Sprintf("a@d%d.test", i)))
		}
		synctest.Wait()
		if n := peak.Load(); n > begin {
			t.Errorf("%d connections at the beginning", n)
		}
		q.waitEnded(t, 50)
		if n := len(e.windows.by); n != 1 {
			t.Errorf("%d windows of one site", n)
		}
		for range 2000 {
			e.Take(message(t, "a@d0.test"))
		}
		time.Sleep(2 * time.Second)
		if n := peak.Load(); n != 20 {
			t.Errorf("%d connections, want 20", n)
		}
		began := time.Now()
		for i := range 20 {
			e.Take(message(t, fmt.Sprintf("b@d%d.test", 1+i)))
		}
		ended := 0
		for ended < 20 {
			time.Sleep(10 * time.Millisecond)
			ended = 0
			for _, o := range q.results() {
				if o.Recipient.Local == "b" {
					ended++
				}
			}
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the other domains waited %s for one's line", took)
		}
		q.waitEnded(t, 2070)
		if n := peak.Load(); n > 20 {
			t.Errorf("%d connections, want 20", n)
		}
	})
}

// TestSiteGivesIdleConnections: a kept connection of one domain ends for the message of another.
func TestSiteGivesIdleConnections(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := dots(50*time.Millisecond, nil)
		defer server.Close()
		q := newFakeQueue()
		e, peak := hosted(q, server, 50, Config{IdleTime: time.Hour, MXConnections: 2})
		e.Start()
		defer stop(t, e)
		for i := range 50 {
			e.Take(message(t, fmt.Sprintf("a@d%d.test", i)))
			time.Sleep(100 * time.Millisecond)
			synctest.Wait()
			if n := len(q.results()); n != i+1 {
				t.Fatalf("%d messages of %d after 100 ms each", n, i+1)
			}
		}
		if n := peak.Load(); n > 2 {
			t.Errorf("%d connections", n)
		}
	})
}

// TestSiteOfNodes: each node takes its part of what all may have, one at least.
func TestSiteOfNodes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var nodes atomic.Int64
		nodes.Store(2)
		server := dots(50*time.Millisecond, nil)
		defer server.Close()
		q := newFakeQueue()
		e, _ := hosted(q, server, 1, Config{Nodes: func() int { return int(nodes.Load()) }})
		e.Start()
		defer stop(t, e)
		most := func() int {
			for range 1000 {
				e.Take(message(t, "a@d0.test"))
			}
			time.Sleep(3 * time.Second)
			synctest.Wait()
			return e.Stats().MX.Connections
		}
		got := []int{most()}
		for _, n := range []int64{4, 100, 0} {
			nodes.Store(n)
			time.Sleep(2 * forgetEvery) // a look at the number
			got = append(got, most())
			q.waitEnded(t, 1000*len(got))
		}
		if want := []int{10, 5, 1, 20}; fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("connections %v, want %v", got, want)
		}
	})
}
