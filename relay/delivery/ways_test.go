package delivery

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/upstream"
)

// network is upstreams over pipes, by name, some of them down.
type network struct {
	mu      sync.Mutex
	servers map[string]*smtptest.Server
	down    map[string]bool
	dials   []string
}

// ways are those of servers, in order, with an engine that reaches them over pipes. A nil
// server refuses connections.
func (n *network) engine(q *fakeQueue, cfg Config, servers ...*smtptest.Server) (*Engine, several) {
	var ways several
	n.servers, n.down = map[string]*smtptest.Server{}, map[string]bool{}
	for i, s := range servers {
		name := string(rune('a' + i))
		n.servers[name], n.down[name] = s, s == nil
		ways = append(ways, route.Way{Name: name, Upstream: &upstream.Account{
			Name: name, Host: "192.0.2.1", Port: 25, TLS: upstream.TLSNone, Replies: upstream.Table("m365")}})
	}
	cfg.Routes, cfg.NoClaim = ways, true
	e := newEngine(q, cfg)
	e.dialer.Dial = func(_ context.Context, to connect.Target) (net.Conn, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		name := to.Upstream.Name
		n.dials = append(n.dials, name)
		if n.down[name] {
			return nil, errors.New("refused")
		}
		ours, theirs := net.Pipe()
		go n.servers[name].ServeConn(theirs)
		return ours, nil
	}
	return e, ways
}

func (n *network) set(name string, down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down[name], n.dials = down, nil
}

// dialled returns which upstreams were dialled since the last call.
func (n *network) dialled() string {
	n.mu.Lock()
	defer n.mu.Unlock()
	list := strings.Join(n.dials, " ")
	n.dials = nil
	return list
}

// servers are n fake servers that end with the test's bubble.
func fakes(t *testing.T, n int) []*smtptest.Server {
	list := make([]*smtptest.Server, n)
	for i := range list {
		list[i] = smtptest.New(smtptest.Config{})
		t.Cleanup(list[i].Close)
	}
	return list
}

func leftOf(o queue.Outcome) string {
	if o.Left == nil {
		return ""
	}
	var list []string
	for _, l := range *o.Left {
		list = append(list, l.Way)
	}
	return strings.Join(list, " ")
}

// TestFirstWayComesBack: while the first way is down, mail goes to the second without waiting
// for it, and only one message at a time finds out whether it is back.
func TestFirstWayComesBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		servers := fakes(t, 2)
		q, n := newFakeQueue(), &network{}
		e, _ := n.engine(q, Config{}, servers...)
		e.Start()
		defer stop(t, e)
		send := func(want, dials string) {
			t.Helper()
			d := message(t, "x@one.test")
			began := time.Now()
			e.Take(d)
			synctest.Wait()
			if o := q.outcome(t, d, 0); o.Result != queue.Delivered || o.Upstream != want || time.Since(began) > 0 {
				t.Fatalf("%+v after %v, want it over %s", o, time.Since(began), want)
			}
			if got := n.dialled(); got != dials {
				t.Fatalf("dialled %q, want %q", got, dials)
			}
		}
		send("a", "a")
		time.Sleep(10 * time.Second) // the connection is not kept so long
		n.set("a", true)
		send("b", "a b") // a worked a moment ago: it pauses
		send("b", "")
		for range 3 { // pauses, and then a suspension
			time.Sleep(5 * time.Second)
			send("b", "a")
			send("b", "")
		}
		n.set("a", false)
		send("b", "") // suspended for half a minute
		time.Sleep(30 * time.Second)
		send("a", "a")
		if list := q.takeRecovered(); !slices.Contains(list, "upstream a") {
			t.Errorf("recovered %q", list)
		}
	})
}

// TestWhoTries: while one message waits for the connection that shows whether the first way is
// back, others do not wait with it.
func TestWhoTries(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		servers := fakes(t, 2)
		q, n := newFakeQueue(), &network{}
		e, _ := n.engine(q, Config{}, nil, servers[1])
		hangs := e.dialer.Dial
		e.dialer.Dial = func(ctx context.Context, to connect.Target) (net.Conn, error) {
			if to.Upstream.Name == "a" {
				time.Sleep(30 * time.Second)
			}
			return hangs(ctx, to)
		}
		e.Start()
		defer stop(t, e)
		first := message(t, "x@one.test")
		e.Take(first)
		time.Sleep(31 * time.Second) // a is suspended for half a minute
		synctest.Wait()
		time.Sleep(30 * time.Second)
		tries, others := message(t, "x@one.test"), message(t, "x@one.test")
		e.Take(tries)
		synctest.Wait()
		e.Take(others)
		synctest.Wait()
		if q.hasEnded(tries) || q.outcome(t, others, 0).Upstream != "b" {
			t.Error("the message that tries does not wait, or another does")
		}
		time.Sleep(31 * time.Second)
		synctest.Wait()
		for _, d := range []*queue.Delivery{first, tries, others} {
			if o := q.outcome(t, d, 0); o.Result != queue.Delivered || o.Upstream != "b" || leftOf(o) != "a" {
				t.Errorf("%+v", o)
			}
		}
	})
}

// TestP12BoundsOverWays: the bounds of an attempt are over all its ways.
func TestP12BoundsOverWays(t *testing.T) {
	t.Parallel()
	t.Run("addresses", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			q, n := newFakeQueue(), &network{}
			e, _ := n.engine(q, Config{}, nil, nil, nil, nil, nil, fakes(t, 1)[0])
			e.Start()
			defer stop(t, e)
			d := message(t, "x@one.test")
			e.Take(d)
			synctest.Wait()
			o := q.outcome(t, d, 0)
			if got := n.dialled(); o.Result != queue.Deferred || got != "a b c d e" {
				t.Errorf("%+v, dialled %s", o, got)
			}
			if leftOf(o) != "b c d e f" || !strings.HasPrefix((*o.Left)[4].Reply, "not tried") {
				t.Errorf("left %+v", *o.Left)
			}
		})
	})
	t.Run("sessions", func(t *testing.T) {
		t.Parallel()
		synctest.Test(t, func(t *testing.T) {
			servers := fakes(t, 4)
			for _, s := range servers {
				s.On(smtptest.PhaseMail, reply("452 4.3.1 full"))
			}
			q, n := newFakeQueue(), &network{}
			e, _ := n.engine(q, Config{}, servers...)
			e.Start()
			defer stop(t, e)
			for range 2 { // also over connections that are kept
				d := message(t, "x@one.test")
				e.Take(d)
				synctest.Wait()
				if o := q.outcome(t, d, 0); o.Result != queue.Deferred || leftOf(o) != "b c d" {
					t.Errorf("%+v, left %s", o, leftOf(o))
				}
			}
			if servers[2].Reached(smtptest.PhaseMail) != 2 || servers[3].Reached(smtptest.PhaseConnect) != 0 {
				t.Error("not three conversations")
			}
		})
	})
	for _, phase := range []smtptest.Phase{smtptest.PhaseBanner, smtptest.PhaseMail} {
		t.Run("time, "+string(phase), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				servers := fakes(t, 4)
				for _, s := range servers {
					s.On(phase, smtptest.Always(smtptest.Stall())) // five minutes
				}
				q, n := newFakeQueue(), &network{}
				e, _ := n.engine(q, Config{}, servers...)
				e.Start()
				defer stop(t, e)
				d := message(t, "x@one.test")
				e.Take(d)
				time.Sleep(30 * time.Minute)
				synctest.Wait()
				if o, got := q.outcome(t, d, 0), n.dialled(); o.Result != queue.Deferred || got != "a b" || leftOf(o) != "b c d" {
					t.Errorf("%+v, dialled %s, left %s", o, got, leftOf(o))
				}
			})
		})
	}
}

// TestExhausted: what no way takes waits with the most informative of the replies, as long as
// for the way that may take it first.
func TestExhausted(t *testing.T) {
	t.Parallel()
	const quota = "554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceeded"
	synctest.Test(t, func(t *testing.T) {
		servers := fakes(t, 2)
		servers[0].On(smtptest.PhaseDot, reply(quota)) // waits an hour
		servers[1].On(smtptest.PhaseMail, reply("421 4.3.2 closing"))
		q, n := newFakeQueue(), &network{}
		e, _ := n.engine(q, Config{}, append(servers, nil)...)
		e.Start()
		defer stop(t, e)
		d := message(t, "x@one.test", "y@one.test")
		e.Take(d)
		synctest.Wait()
		for i := range 2 {
			o := q.outcome(t, d, i)
			if o.Result != queue.Deferred || o.Upstream != "a" || o.Scope != "account" || o.Reply.Code != 554 || leftOf(o) != "b c" || o.Unknown {
				t.Errorf("%+v, left %s", o, leftOf(o))
			}
			if o.RetryIn > 2*time.Minute || o.WaitsFor != "upstream a" && o.WaitsFor != "upstream c" {
				t.Errorf("waits %v for %q, want as long as for the way that may take it first", o.RetryIn, o.WaitsFor)
			}
		}
	})
}

// TestAllSuspended: mail that no way is asked for says so of each.
func TestAllSuspended(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, n := newFakeQueue(), &network{}
		e, _ := n.engine(q, Config{}, nil, nil)
		e.Start()
		defer stop(t, e)
		for i, dials := range []string{"a b", ""} {
			d := message(t, "x@one.test", "y@one.test")
			e.Take(d)
			synctest.Wait()
			o := q.outcome(t, d, 1)
			if got := n.dialled(); got != dials || o.Result != queue.Deferred || o.NotAnAttempt != (i == 1) || leftOf(o) != "b" {
				t.Errorf("%+v, dialled %q, left %s", o, got, leftOf(o))
			}
			if o.NotAnAttempt && strings.Count(o.Reply.Text, "; b: 451 4.4.1 waits for upstream b, not used until ") != 1 {
				t.Errorf("%q does not speak once of the second way", o.Reply.Text)
			}
		}
	})
}

// TestWayLacks: what one way lacks another may have. It is final if all lack it, and waits while
// one cannot be asked.
func TestWayLacks(t *testing.T) {
	t.Parallel()
	type second int
	const (
		hasIt second = iota
		lacksIt
		isDown
		isPaused
	)
	for _, test := range []struct {
		name   string
		second second
		third  bool // there is one, which is down
		want   queue.Result
	}{
		{"the second has it", hasIt, false, queue.Delivered},
		{"none has it", lacksIt, false, queue.Failed},
		{"the second is down", isDown, false, queue.Deferred},
		{"the second is paused", isPaused, false, queue.Deferred},
		{"the third is down", lacksIt, true, queue.Deferred},
	} {
		for need, rcpt := range map[string]string{"SIZE": "x@one.test", "SMTPUTF8": "ü@one.test"} {
			t.Run(test.name+", "+need, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					lacking := smtptest.Config{Extensions: []string{"SIZE 10", "SMTPUTF8"}}
					if need == "SMTPUTF8" {
						lacking.Extensions = []string{"SIZE 0"}
					}
					servers := []*smtptest.Server{smtptest.New(lacking), nil}
					switch test.second {
					case hasIt, isPaused:
						servers[1] = smtptest.New(smtptest.Config{})
					case lacksIt:
						servers[1] = smtptest.New(lacking)
					}
					for _, s := range servers {
						if s != nil {
							defer s.Close()
						}
					}
					if test.third {
						servers = append(servers, nil)
					}
					q, n := newFakeQueue(), &network{}
					e, ways := n.engine(q, Config{}, servers...)
					if test.second == isPaused {
						ways[1].Err = &upstream.PausedError{Upstream: "b"}
					}
					e.Start()
					defer stop(t, e)
					d := message(t, rcpt)
					e.Take(d)
					synctest.Wait()
					if o := q.outcome(t, d, 0); o.Result != test.want || leftOf(o) == "" {
						t.Errorf("%+v, left %s", o, leftOf(o))
					}
				})
			})
		}
	}
}

// TestNoWayNamesAll: where no way of a route can be used, the reply has each with its reason.
func TestNoWayNamesAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, n := newFakeQueue(), &network{}
		e, ways := n.engine(q, Config{}, fakes(t, 3)...)
		d := message(t, "x@one.test")
		ways[0].Err = &upstream.SenderError{Upstream: "a", Sender: d.Message.Sender}
		ways[1].Err = &upstream.PausedError{Upstream: "b"}
		ways[2].Err = &upstream.PausedError{Upstream: "c"}
		e.Start()
		defer stop(t, e)
		e.Take(d)
		synctest.Wait()
		const want = "upstream b is paused; a: upstream a may not send as sender@sender.test; c: upstream c is paused"
		if o := q.outcome(t, d, 0); !o.NotAnAttempt || o.WaitsFor != "upstream b" || o.Reply.Text != want || leftOf(o) != "a c" {
			t.Errorf("%+v, left %s; want %q", o, leftOf(o), want)
		}
	})
}

// TestPassedOver: a way that cannot be used is left without an attempt.
func TestPassedOver(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q, n := newFakeQueue(), &network{}
		e, ways := n.engine(q, Config{}, fakes(t, 4)...)
		d := message(t, "x@one.test")
		ways[0].Err = &upstream.PausedError{Upstream: "a"}
		ways[1].Err = &upstream.SenderError{Upstream: "b", Sender: d.Message.Sender}
		e.Start()
		defer stop(t, e)
		e.Take(d)
		synctest.Wait()
		o := q.outcome(t, d, 0)
		if o.Result != queue.Delivered || o.Upstream != "c" || leftOf(o) != "a b" {
			t.Fatalf("%+v, left %s", o, leftOf(o))
		}
		if left := *o.Left; left[0].Reply != "upstream a is paused" || left[1].Reply != "upstream b may not send as sender@sender.test" || left[1].Scope != "sender" {
			t.Errorf("left %+v", left)
		}
		if n.dialled() != "c" || !slices.Equal(q.gated, []string{"c"}) {
			t.Errorf("gated %q", q.gated)
		}
	})
}

// TestOnlyOtherSenders: what the ways lack that may send as the sender, all lack.
func TestOnlyOtherSenders(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		lacking := smtptest.New(smtptest.Config{Extensions: []string{"SIZE 10"}})
		defer lacking.Close()
		q, n := newFakeQueue(), &network{}
		e, ways := n.engine(q, Config{}, lacking, nil)
		d := message(t, "x@one.test")
		ways[1].Err = &upstream.SenderError{Upstream: "b", Sender: d.Message.Sender}
		e.Start()
		defer stop(t, e)
		e.Take(d)
		synctest.Wait()
		if o := q.outcome(t, d, 0); o.Result != queue.Failed || o.Upstream != "a" || leftOf(o) != "b" {
			t.Errorf("%+v, left %s", o, leftOf(o))
		}
	})
}

// TestNextWayWhileClosing: a node that ends hands back what would go on, due now.
func TestNextWayWhileClosing(t *testing.T) {
	t.Parallel()
	servers := []*smtptest.Server{smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})}
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: several{wayTo("a", servers[0]), wayTo("b", servers[1])}})
	servers[0].On(smtptest.PhaseMail, smtptest.Always(smtptest.Then(
		smtptest.Do(func() { e.endWork() }), smtptest.Reply("452 4.3.1 full"))))
	d := message(t, "x@one.test")
	e.Take(d)
	q.waitEnded(t, 1)
	if got := q.released[rowKey{d.Message.ID, 0}]; len(got) != 1 || got[0] != 0 {
		t.Errorf("released %v, outcomes %v", got, q.outcomes)
	}
	stop(t, e)
	dropped(t, d)
}

// TestP12StaysWith: mail in doubt goes to its way alone, whatever the route and the state of the way
// are; mail of a single way tells the gate of none.
func TestP12StaysWith(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		servers := fakes(t, 2)
		q, n := newFakeQueue(), &network{}
		e, ways := n.engine(q, Config{}, servers...)
		n.set("b", true)
		e.Start()
		defer stop(t, e)
		take := func(with string) queue.Outcome {
			t.Helper()
			d := message(t, "x@one.test")
			d.Recipients[0].StaysWith, d.Recipients[0].Attempts = with, 1
			e.Take(d)
			synctest.Wait()
			o := q.outcome(t, d, 0)
			if o.Result != queue.Delivered && with != "" && o.StaysWith != with {
				t.Errorf("stays with %q, want %q", o.StaysWith, with)
			}
			return o
		}
		for range 2 { // refused, and left alone
			if o := take("b"); o.Result != queue.Deferred || o.Upstream != "b" || o.Left != nil {
				t.Errorf("%+v", o)
			}
		}
		n.set("b", false)
		time.Sleep(time.Minute)
		servers[1].On(smtptest.PhaseDot, smtptest.Once(smtptest.Reply("554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceeded")))
		if o := take("b"); o.Result != queue.Deferred || o.Upstream != "b" {
			t.Errorf("refused: %+v", o)
		}
		if o := take("b"); o.Result != queue.Delivered || o.Upstream != "b" {
			t.Errorf("%+v", o)
		}
		ways[1].Err = &upstream.PausedError{Upstream: "b"}
		for _, with := range []string{"b", "gone"} {
			if o := take(with); o.Result != queue.Deferred || !o.NotAnAttempt || !strings.Contains(o.Reply.Text, with) {
				t.Errorf("%s: %+v", with, o)
			}
		}
		if len(servers[0].Messages()) != 0 || slices.ContainsFunc(q.gated, func(way string) bool { return way != "" }) {
			t.Errorf("the first way was used, or the gate was told of %q", q.gated)
		}
		servers[0].On(smtptest.PhaseDot, smtptest.Always(smtptest.Close()))
		if o := take(""); !o.Unknown || o.StaysWith != "a" || o.RetryIn < 15*time.Minute {
			t.Errorf("in doubt: %+v", o)
		}
		if !slices.Equal(q.gated[len(q.gated)-1:], []string{"a"}) {
			t.Errorf("the gate was told of %q", q.gated)
		}
	})
}

// TestRecordWays: under the strict gate the way of each dot is recorded.
func TestRecordWays(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: several{wayTo("a", server)}, RecordWays: true})
	d := message(t, "x@one.test")
	e.Take(d)
	q.waitEnded(t, 1)
	if o := q.outcome(t, d, 0); o.Result != queue.Delivered || !slices.Equal(q.gated, []string{"a"}) {
		t.Errorf("%+v, the gate was told of %q", o, q.gated)
	}
}

// TestOnlyTheRestGoesOn: recipients part at the first way, and divide at the second by its
// transactions.
func TestOnlyTheRestGoesOn(t *testing.T) {
	t.Parallel()
	servers := []*smtptest.Server{smtptest.Start(t, smtptest.Config{}), smtptest.Start(t, smtptest.Config{})}
	servers[0].On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
		switch s.Rcpt % 4 {
		case 0:
			return smtptest.Action{}
		case 1:
			return smtptest.Reply("550 5.1.1 unknown")
		case 2:
			return smtptest.Reply("450 4.2.0 greylisted")
		}
		return smtptest.Reply("451 4.3.0 trouble here")
	})
	ways := several{wayTo("a", servers[0]), wayTo("b", servers[1])}
	ways[1].Upstream.MaxRecipients = 3
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: ways})
	var rcpts []string
	for i := range 40 {
		rcpts = append(rcpts, fmt.Sprintf("r%d@one.test", i))
	}
	d := message(t, rcpts...)
	e.Take(d)
	q.waitEnded(t, 40)
	for i := range 40 {
		want := []string{"delivered a ", "failed a ", "deferred a ", "delivered b a"}[i%4]
		if o := q.outcome(t, d, i); fmt.Sprint(o.Result, " ", o.Upstream, " ", leftOf(o)) != want {
			t.Errorf("recipient %d: %+v, want %s", i, o, want)
		}
	}
	if got := servers[1].Messages(); len(got) != 4 {
		t.Errorf("%d transactions at the second way, want 10 recipients in four", len(got))
	}
	stop(t, e)
	dropped(t, d)
}

// TestPartTakenThenDead: the first way takes some recipients, and dies with the others. Those that
// were too many for it go on, also where it may have those before them.
func TestPartTakenThenDead(t *testing.T) {
	t.Parallel()
	for _, limits := range []string{"said at RCPT", "LIMITS RCPTMAX=20"} {
		for _, at := range []smtptest.Phase{smtptest.PhaseData, smtptest.PhaseDot} {
			t.Run(limits+", "+string(at), func(t *testing.T) {
				t.Parallel()
				second := smtptest.Start(t, smtptest.Config{})
				first := smtptest.Start(t, smtptest.Config{Extensions: []string{"PIPELINING", "ENHANCEDSTATUSCODES", limits}})
				first.On(smtptest.PhaseRcpt, func(s smtptest.Session) smtptest.Action {
					if s.Rcpt >= 20 {
						return smtptest.Reply("452 4.5.3 too many recipients")
					}
					return smtptest.Action{}
				})
				first.On(at, func(s smtptest.Session) smtptest.Action {
					if s.Messages > 0 {
						return smtptest.Reset()
					}
					return smtptest.Action{}
				})
				q := newFakeQueue()
				e := startEngine(t, q, Config{Routes: several{wayTo("a", first), wayTo("b", second)}})
				var rcpts []string
				for i := range 50 {
					rcpts = append(rcpts, fmt.Sprintf("r%d@one.test", i))
				}
				d := message(t, rcpts...)
				e.Take(d)
				q.waitEnded(t, 50)
				for i := range 50 {
					want := "delivered a false "
					switch {
					case i >= 40 || i >= 20 && at == smtptest.PhaseData:
						want = "delivered b false a"
					case i >= 20:
						want = "deferred a true "
					}
					if o := q.outcome(t, d, i); fmt.Sprint(o.Result, " ", o.Upstream, " ", o.Unknown, " ", leftOf(o)) != want {
						t.Errorf("recipient %d: %+v, want %s", i, o, want)
					}
				}
				if len(second.Messages()) != 1 {
					t.Errorf("%d transactions at the second way", len(second.Messages()))
				}
				stop(t, e)
				dropped(t, d)
			})
		}
	}
}

// TestOnToMX: mail that goes on to MX divides by domain.
func TestOnToMX(t *testing.T) {
	t.Parallel()
	dns := new(dnstest.Zones)
	servers, cfg := mxHostsIn(t, 2, dns)
	dns.AddMX("two.test", 10, "mx2.one.test.")
	first := smtptest.Start(t, smtptest.Config{})
	first.On(smtptest.PhaseData, smtptest.Always(smtptest.Close()))
	cfg.Routes, cfg.Connect.AllowPrivateMX = several{wayTo("a", first), {Name: route.MX}}, true
	q := newFakeQueue()
	e := startEngine(t, q, cfg)
	d := message(t, "x@one.test", "x@two.test", "y@one.test")
	e.Take(d)
	q.waitEnded(t, 3)
	for i, host := range []string{"mx1.one.test", "mx2.one.test", "mx1.one.test"} {
		if o := q.outcome(t, d, i); o.Result != queue.Delivered || o.RemoteMTA != host || leftOf(o) != "a" {
			t.Errorf("recipient %d: %+v, want it at %s", i, o, host)
		}
	}
	if len(servers[0].Messages()) != 1 {
		t.Errorf("%d transactions for two recipients of one domain", len(servers[0].Messages()))
	}
	stop(t, e)
	dropped(t, d)
}
