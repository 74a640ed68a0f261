package delivery

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
)

// crowd is an engine with n domains d0.test, d1.test, … at one server and healthy.test at
// another, each at an address of its own, over pipes. A nil server takes no connection
// and says nothing.
func crowd(q *fakeQueue, n int, bad, good *smtptest.Server) *Engine {
	return crowdIn(q, n, bad, good, new(dnstest.Zones))
}

func crowdIn(q *fakeQueue, n int, bad, good *smtptest.Server, dns *dnstest.Zones) *Engine {
	for i := range n {
		dns.AddHost(fmt.Sprintf("d%d.test", i), fmt.Sprintf("198.18.%d.%d", i/250, i%250+1))
	}
	dns.AddHost("healthy.test", "198.51.100.1")
	e := newEngine(q, Config{Connect: connect.Config{DNS: dns.Resolver()}, Routes: routes{}, NoClaim: true})
	e.dialer.Dial = func(ctx context.Context, to connect.Target) (net.Conn, error) {
		s := bad
		if to.Host == "healthy.test" {
			s = good
		}
		if s == nil {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		ours, theirs := net.Pipe()
		go s.ServeConn(theirs)
		return ours, nil
	}
	return e
}

// TestH1SilentDomains: one message to six hundred domains whose servers keep silent, at
// any step, or drip, keeps nobody from a healthy domain for longer than five seconds:
// not another user, and not the sender itself.
func TestH1SilentDomains(t *testing.T) {
	t.Parallel()
	drip := smtptest.Always(smtptest.DripNormal(10 * time.Second))
	stall := smtptest.Always(smtptest.Stall())
	for name, hooks := range map[string]map[smtptest.Phase]smtptest.Hook{
		"connect":       nil,
		"greeting":      {smtptest.PhaseBanner: stall},
		"EHLO":          {smtptest.PhaseHello: stall},
		"MAIL":          {smtptest.PhaseMail: stall},
		"RCPT":          {smtptest.PhaseRcpt: stall},
		"DATA":          {smtptest.PhaseData: stall},
		"drip greeting": {smtptest.PhaseBanner: drip},
		"drip MAIL":     {smtptest.PhaseMail: drip},
		"drip DATA":     {smtptest.PhaseData: drip},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var bad *smtptest.Server
				if hooks != nil {
					bad = smtptest.New(smtptest.Config{Hooks: hooks})
					defer bad.Close()
				}
				good := smtptest.New(smtptest.Config{})
				defer good.Close()
				q := newFakeQueue()
				e := crowd(q, 600, bad, good)
				e.Start()
				defer stop(t, e)
				var rcpts []string
				for i := range 600 {
					rcpts = append(rcpts, fmt.Sprintf("a@d%d.test", i))
				}
				e.Take(message(t, rcpts...))
				for round := range 6 {
					for _, user := range []int64{1, 2} {
						d := message(t, "a@healthy.test")
						d.Message.UserID = user
						e.Take(d)
						time.Sleep(5 * time.Second)
						synctest.Wait()
						if !q.hasEnded(d) {
							t.Fatalf("round %d: the mail of user %d does not get through", round, user)
						}
						if o := q.outcome(t, d, 0); o.Result != queue.Delivered {
							t.Fatalf("round %d: %+v", round, o)
						}
					}
				}
			})
		})
	}
}

// TestH1SlowIsNotSilent: a server that takes its time keeps its connection, as long as
// its user does not hold all that it may, and one that moves keeps it in any case.
func TestH1SlowIsNotSilent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseMail: smtptest.Always(smtptest.Then(smtptest.Delay(time.Minute), smtptest.Normal()))}})
		defer slow.Close()
		q := newFakeQueue()
		e := crowd(q, 600, slow, slow)
		e.Start()
		defer stop(t, e)
		other := message(t, "a@healthy.test")
		other.Message.UserID = 2
		e.Take(other)
		var rcpts []string
		for i := range 600 {
			rcpts = append(rcpts, fmt.Sprintf("a@d%d.test", i))
		}
		e.Take(message(t, rcpts...))
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if o := q.outcome(t, other, 0); o.Result != queue.Delivered {
			t.Errorf("the user with one slow destination: %+v", o)
		}
	})
}

// TestH1SharedDestination: a user who holds a whole share of the connections for as long as
// their servers like keeps nobody from a destination that they write to as well, though
// their messages came there first.
func TestH1SharedDestination(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		good := smtptest.New(smtptest.Config{})
		defer good.Close()
		q := newFakeQueue()
		e := crowd(q, 0, nil, good)
		const whole = 340
		e.slots.Add(whole, userOf(1), "silent after the dot")
		e.Start()
		defer stop(t, e)
		var waits []*queue.Delivery
		for range 2 * begin {
			waits = append(waits, by(1, message(t, "a@healthy.test")))
			e.Take(waits[len(waits)-1])
		}
		synctest.Wait()
		if n := len(q.results()); n != 0 {
			t.Fatalf("%d messages of a user with a whole share are delivered", n)
		}
		for user := range int64(3) {
			d := by(2+user, message(t, "a@healthy.test"))
			e.Take(d)
			time.Sleep(time.Second)
			synctest.Wait()
			if !q.hasEnded(d) {
				t.Fatalf("user %d waits behind another's share", 2+user)
			}
			time.Sleep(time.Minute) // until no connection is kept
			waits = append(waits, by(1, message(t, "a@healthy.test")))
			e.Take(waits[len(waits)-1])
			synctest.Wait()
		}
		e.slots.Give(whole, userOf(1), "silent after the dot")
		time.Sleep(time.Second)
		synctest.Wait()
		for i, d := range waits {
			if !q.hasEnded(d) {
				t.Errorf("message %d still waits", i)
			}
		}
		time.Sleep(time.Minute)
		if used, _ := e.slots.Use(); used != 0 {
			t.Errorf("%d connections are counted", used)
		}
	})
}

// TestH1OneAddress: however many domains one address has, it gets no more than its share
// of the connections, and what it has no room for is not counted as an attempt.
func TestH1OneAddress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Always(smtptest.Stall())}})
		defer silent.Close()
		q := newFakeQueue()
		dns := new(dnstest.Zones)
		e := crowdIn(q, 0, silent, silent, dns)
		for i := range 600 {
			dns.AddHost(fmt.Sprintf("d%d.test", i), "198.18.0.1")
		}
		e.Start()
		defer stop(t, e)
		for i := range 600 {
			d := message(t, fmt.Sprintf("a@d%d.test", i))
			d.Message.UserID = int64(i % 20)
			e.Take(d)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := silent.Reached(smtptest.PhaseDot); n < 200 || n > 340 {
			t.Errorf("%d connections to one address of %d", n, e.cfg.MaxOpen)
		}
		if n := len(q.releases()); n < 260 {
			t.Errorf("%d messages were given back without an attempt", n)
		}
		if n := len(q.results()); n != 0 {
			t.Errorf("%d attempts were counted", n)
		}
		silent.Close()
		time.Sleep(time.Second)
	})
}

// TestH1Lines: however many domains take nothing and however many users write to them,
// there is room in memory for a message to another domain; and one user alone leaves
// room for the next.
func TestH1Lines(t *testing.T) {
	t.Parallel()
	for users, domains := range map[int64]int{1: 40, 50: 11} {
		t.Run(fmt.Sprintf("%d users, %d domains", users, domains), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				silent := smtptest.New(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseDot: smtptest.Always(smtptest.Stall())}})
				defer silent.Close()
				q := newFakeQueue()
				e := crowd(q, domains, silent, silent)
				e.Rebound(Bounds{Memory: 600 * int64(len(text))})
				e.Start()
				defer stop(t, e)
				for i := range 3000 {
					d := message(t, fmt.Sprintf("a@d%d.test", i%domains))
					d.Message.UserID = 1 + int64(i)%users
					if e.Reserve(d.Message.UserID, d.Body.Size()) {
						e.Take(d)
					} else {
						d.Body.Drop()
					}
					synctest.Wait()
				}
				if !e.Reserve(1000, int64(len(text))) {
					t.Errorf("no room for a newcomer: %+v", e.Stats())
				}
				if busy := e.load.filled(); users == 1 && (len(busy) != 1 || busy[0] != 1) {
					t.Errorf("users with their whole share: %v, want the one; %+v", busy, e.Stats())
				}
				silent.Close()
				time.Sleep(time.Second)
			})
		})
	}
}

// TestM7Weights: what a recipient and a job take of memory is no more than what they
// are counted for.
func TestM7Weights(t *testing.T) {
	const n = 1000
	long := strings.Repeat("x", 120)
	inUse := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	for name, test := range map[string]struct {
		domain func(i int) string
	}{
		"recipients of one job": {func(int) string { return "d0.test" }},
		"a job each":            {func(i int) string { return fmt.Sprintf("d%d.test", i) }},
	} {
		t.Run(name, func(t *testing.T) {
			q := newFakeQueue()
			e := crowd(q, n, nil, nil)
			var dialled atomic.Int64
			dial := e.dialer.Dial
			e.dialer.Dial = func(ctx context.Context, to connect.Target) (net.Conn, error) {
				dialled.Add(1)
				return dial(ctx, to)
			}
			d := message(t)
			before := inUse()
			d.Recipients = make([]queue.Recipient, 0, n)
			for i := range n {
				d.Recipients = append(d.Recipients, queue.Recipient{
					N: i, Address: address(t, fmt.Sprintf("%s%d@%s", long, i, test.domain(i))),
					ORcptType: "rfc822", ORcpt: strings.Repeat("y", 480) + fmt.Sprint(i),
				})
			}
			e.Take(d)
			dispatch(e)
			for used, size := e.slots.Use(); used < min(n, size/2) && len(e.all()) > 1 || dialled.Load() < used; used, _ = e.slots.Use() {
				runtime.Gosched() // until the workers are there, and have looked up where to
			}
			taken, counted := (inUse()-before)/n, e.Stats().Memory/n
			t.Logf("a recipient takes %d octets and counts for %d", taken, counted)
			if taken > counted {
				t.Error("it counts for too little")
			}
			e.Start()
			stop(t, e)
		})
	}
}
