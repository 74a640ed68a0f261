package delivery

import (
	"context"
	"net"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// pipes makes an engine speak to server over pipes, so that time is the bubble's.
// While down is set, connections are refused; dials counts them all.
func pipes(e *Engine, server *smtptest.Server) (down *atomic.Bool, dials *atomic.Int64) {
	down, dials = new(atomic.Bool), new(atomic.Int64)
	e.dialer.Dial = func(context.Context, connect.Target) (net.Conn, error) {
		dials.Add(1)
		if down.Load() {
			return nil, syscall.ECONNREFUSED
		}
		ours, theirs := net.Pipe()
		go server.ServeConn(theirs)
		return ours, nil
	}
	return down, dials
}

var piped = &upstream.Account{Name: "sink", Host: "192.0.2.1", Port: 25, TLS: upstream.TLSNone, MaxConnections: 4}

// TestBackoff walks a destination through its trouble: one dial for each entry of the
// table, whatever comes meanwhile, and none left when it is over.
func TestBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}, NoClaim: true, Backoff: []time.Duration{time.Minute, 10 * time.Minute}})
		down, dials := pipes(e, server)
		e.Start()
		defer stop(t, e)
		send := func() queue.Outcome {
			d := message(t, "a@one.test")
			e.Take(d)
			synctest.Wait()
			return q.outcome(t, d, 0)
		}
		down.Store(true)
		for _, step := range []struct {
			after time.Duration
			dials int64
		}{
			{0, 1},
			{0, 1},
			{59 * time.Second, 1},
			{time.Second, 2}, // the first minute is over
			{9 * time.Minute, 2},
			{time.Minute, 3},
			{9 * time.Minute, 3}, // the last entry repeats
			{time.Minute, 4},
		} {
			time.Sleep(step.after)
			if o := send(); o.Result != queue.Deferred || o.RetryIn < 50*time.Second {
				t.Fatalf("outcome %+v", o)
			}
			if n := dials.Load(); n != step.dials {
				t.Fatalf("%d dials, want %d", n, step.dials)
			}
		}
		down.Store(false)
		time.Sleep(11 * time.Minute)
		if o := send(); o.Result != queue.Delivered {
			t.Fatalf("when it is over: %+v", o)
		}
		down.Store(true)
		time.Sleep(time.Minute) // the connection has gone meanwhile
		if o := send(); o.Result != queue.Deferred || o.RetryIn > 70*time.Second {
			t.Errorf("new trouble: %+v, want the table from its beginning", o)
		}
	})
}

// TestAskedEndsBackoff has an operator mend a server and ask for its mail: it is
// tried immediately and not when the table says so.
func TestAskedEndsBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Routes: routes{def: piped}, Backoff: []time.Duration{time.Hour}})
		down, dials := pipes(e, server)
		e.Start()
		defer stop(t, e)
		offer := func() queue.Outcome {
			d := message(t, "a@one.test")
			q.offer(d)
			time.Sleep(time.Second)
			synctest.Wait()
			return q.outcome(t, d, 0)
		}
		down.Store(true)
		offer()
		down.Store(false)
		if o := offer(); o.Result != queue.Deferred || dials.Load() != 1 {
			t.Fatalf("in trouble: %+v after %d dials", o, dials.Load())
		}
		q.asked.Add(1)
		if o := offer(); o.Result != queue.Delivered {
			t.Errorf("asked for: %+v", o)
		}
	})
}

// TestOccasionalTroubleKeepsTheConnections drops one conversation in fifty: that is
// no reason to go on with fewer connections for long.
func TestOccasionalTroubleKeepsTheConnections(t *testing.T) {
	t.Parallel()
	d := &destination{e: newEngine(newFakeQueue(), Config{Routes: routes{def: piped}}), via: "sink", window: windowAt(20), live: 20}
	least := d.window.limit
	for i := range 5000 {
		if i%50 == 0 {
			d.brokeOff(&trouble{}, 1)
		} else {
			d.succeeded(1, 0)
			d.window.ended(0, true)
		}
		least = min(least, d.window.limit)
	}
	if least < 18 {
		t.Errorf("went down to %d connections of 20", least)
	}
	for range 30 {
		d.brokeOff(&trouble{}, 1)
	}
	if limit := d.window.limit; limit != 1 {
		t.Errorf("%d connections to a server that drops every conversation", limit)
	}
}

// TestIdle keeps a connection for its idle time and no longer, and forgets the
// destination.
func TestIdle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		e := newEngine(newFakeQueue(), Config{Routes: routes{def: piped}, NoClaim: true})
		_, dials := pipes(e, server)
		e.Start()
		defer stop(t, e)
		for _, step := range []struct {
			after time.Duration
			dials int64
		}{{0, 1}, {7 * time.Second, 1}, {7 * time.Second, 1}, {9 * time.Second, 2}} {
			time.Sleep(step.after)
			e.Take(message(t, "a@one.test"))
			synctest.Wait()
			if n := dials.Load(); n != step.dials {
				t.Fatalf("%d dials, want %d", n, step.dials)
			}
		}
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if n := server.Reached(smtptest.PhaseQuit); n != 2 {
			t.Errorf("%d QUITs, want 2", n)
		}
		if n := len(e.all()); n != 1 {
			t.Errorf("%d destinations are known as working, want 1", n)
		}
		time.Sleep(recently)
		synctest.Wait()
		if n := len(e.all()); n != 0 {
			t.Errorf("%d destinations are remembered", n)
		}
	})
}

// TestBusy tells the claim which domains are left alone, and no longer than they are.
func TestBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dns := &dnstest.Zones{}
		dns.AddHost("down.test", "192.0.2.1")
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q := newFakeQueue()
		e := newEngine(q, Config{Connect: connect.Config{DNS: dns.Resolver()}, Routes: routes{}, NoClaim: true})
		down, _ := pipes(e, server)
		down.Store(true)
		e.Start()
		defer stop(t, e)
		if busy := e.busy(); busy != nil {
			t.Errorf("busy at first: %v", busy)
		}
		e.Take(message(t, "a@Down.test"))
		synctest.Wait()
		if busy := e.busy(); !slices.Equal(busy, []string{"down.test"}) {
			t.Errorf("busy: %v, want down.test", busy)
		}
		time.Sleep(31 * time.Second)
		if busy := e.busy(); busy != nil {
			t.Errorf("busy when the wait is over: %v", busy)
		}
	})
}

// TestClaimPace has a queue whose Wait returns immediately although nothing can be
// claimed: the engine must not spin.
func TestClaimPace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := &eager{fakeQueue: newFakeQueue()}
		e := New(Config{Connect: connect.Config{Hello: "relay.test"}, Queue: q, Routes: routes{}})
		e.Start()
		time.Sleep(10 * time.Second)
		stop(t, e)
		if n := len(q.requests); n > 101 || n < 50 {
			t.Errorf("%d claims in 10 seconds", n)
		}
	})
}

type eager struct{ *fakeQueue }

func (*eager) Wait(context.Context) error { return nil }
