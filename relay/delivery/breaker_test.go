package delivery

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/logtest"
	"postern/internal/pgtest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
)

// sharing are nodes that share the breaker of an upstream.
type sharing struct {
	t      *testing.T
	server *smtptest.Server
	db     *pgtest.DB
	log    logtest.Lines
	second *smtptest.Server // of another upstream, "second"; nil: there is none
}

// sharer is one of them.
type sharer struct {
	*Engine
	q        *fakeQueue
	breakers *breaker.Breakers
}

func newSharing(t *testing.T) *sharing {
	s := &sharing{t: t, server: smtptest.Start(t, smtptest.Config{}), db: pgtest.New(t)}
	if _, err := s.db.Pool.Exec(t.Context(), `insert into upstream (name, host, port, tls) values ('sink', '127.0.0.1', 25, 'none')`); err != nil {
		t.Fatal(err)
	}
	return s
}

// node starts one. change, if it is not nil, changes the engine before.
func (s *sharing) node(name string, change func(*Engine)) *sharer {
	up := upstreamAt(s.server)
	cfg := Config{Routes: routes{def: up}, Log: s.log.Logger(), Connect: connect.Config{Hello: "relay.test"}, Pauses: []time.Duration{10 * time.Millisecond, 20 * time.Millisecond}, Backoff: []time.Duration{time.Hour}}
	prober, q := connect.NewProber(cfg.Connect), newFakeQueue()
	b := breaker.New(breaker.Config{DB: s.db.Pool, Node: name, Log: cfg.Log, Backoff: cfg.Backoff,
		Probe: func(ctx context.Context, name, sender string) (*breaker.Cause, error) {
			if s.second != nil && name == "second" {
				return prober.Through(ctx, wayTo("second", s.second).Upstream, sender)
			}
			return prober.Through(ctx, up, sender)
		}})
	cfg.Breakers = b
	e := newEngine(q, cfg)
	if change != nil {
		change(e)
	}
	e.Start()
	s.t.Cleanup(func() { stop(s.t, e) })
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx, e)
	}()
	s.t.Cleanup(func() { cancel(); <-done })
	return &sharer{e, q, b}
}

// send has a user send a message, and returns what became of it.
func (n *sharer) send(t *testing.T, user int64, rcpt string) queue.Outcome {
	t.Helper()
	d := message(t, rcpt)
	d.Message.UserID, d.Message.Sender = user, address(t, fmt.Sprintf("user%d@sender.test", user))
	n.Take(d)
	n.q.wait(t, "an outcome", func() bool { return len(n.q.outcomes[rowKey{d.Message.ID, 0}]) > 0 })
	return n.q.outcome(t, d, 0)
}

func (n *sharer) await(t *testing.T, open bool) breaker.State {
	t.Helper()
	return n.awaitOf(t, "sink", open)
}

func (n *sharer) awaitOf(t *testing.T, upstream string, open bool) breaker.State {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if s := n.breakers.State(upstream); s.Open == open && s.Opening > 0 {
			return s
		} else if time.Now().After(end) {
			t.Fatalf("waited for open = %v: %+v", open, s)
		}
	}
}

// recovers waits until the node makes the mail of a way due.
func (n *sharer) recovers(t *testing.T, way string) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if slices.Contains(n.q.takeRecovered(), way) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("the mail for %s is not due", way)
		}
	}
}

// never sees to it that the breaker stays as it never was open, for two readings.
func (n *sharer) never(t *testing.T) {
	t.Helper()
	time.Sleep(2500 * time.Millisecond)
	if s := n.breakers.State("sink"); s.Opening != 0 {
		t.Errorf("it has opened: %+v", s)
	}
}

func (s *sharing) hurry() {
	s.t.Helper()
	if n, err := breaker.Hurry(s.t.Context(), s.db.Pool, "sink"); n != 1 || err != nil {
		s.t.Fatal(n, err)
	}
}

// TestBreakerForAllNodes has one node find the upstream refuse everybody: the other one lets its
// mail wait without a try, until a probe gets through.
func TestBreakerForAllNodes(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	s.server.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Reply("554 5.7.1 not you")))
	a, b := s.node("a", nil), s.node("b", nil)
	if o := a.send(t, 1, "r@one.test"); o.Reply.Code != 554 || o.NotAnAttempt {
		t.Fatalf("%+v", o)
	}
	if state := b.await(t, true); state.Node != "a" || state.Stage != "connect" || state.Scope != "host" || state.Reply != "554 5.7.1 not you" {
		t.Errorf("%+v", state)
	}
	conns := s.server.Conns()
	o := b.send(t, 2, "r@one.test")
	if !o.NotAnAttempt || o.WaitsFor != "upstream sink" || o.Scope != "host" || o.RetryIn < openWait || o.RetryIn > 2*openWait ||
		!strings.Contains(o.Reply.Text, "not used until") || !strings.Contains(o.Reply.Text, `after "554 5.7.1 not you"`) {
		t.Errorf("%+v", o)
	}
	if s.server.Conns() != conns || b.Stats().Upstream.Suspended != 1 {
		t.Errorf("%d connections more; %+v", s.server.Conns()-conns, b.Stats())
	}
	s.server.On(smtptest.PhaseBanner, nil)
	s.hurry()
	a.await(t, false)
	b.await(t, false)
	for _, n := range []*sharer{a, b} { // each may have let mail wait until it knew
		n.recovers(t, "upstream sink")
	}
	for _, n := range []*sharer{a, b} {
		if o := n.send(t, 1, "r@one.test"); o.Result != queue.Delivered {
			t.Errorf("%+v", o)
		}
	}
	if s.log.Count("upstream opened") != 1 || s.log.Count("upstream closed") != 1 {
		t.Errorf("log: %s", &s.log)
	}
}

// TestRefusedComesBack: one user's mail that was refused for the account, which opens no breaker, is
// due when the upstream takes mail again: not at each message that is taken, but soon.
func TestRefusedComesBack(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	const pause = 50 * time.Millisecond
	n := s.node("a", func(e *Engine) { e.cfg.Backoff = []time.Duration{6 * pause} })
	n.send(t, 1, "r@one.test")
	n.recovers(t, "upstream sink") // as at each start
	s.server.On(smtptest.PhaseDot, smtptest.Once(smtptest.Reply("535 5.7.8 the quota is used up")))
	if o := n.send(t, 1, "r@one.test"); o.WaitsFor != "upstream sink" {
		t.Fatalf("%+v", o)
	}
	for end := time.Now().Add(patience); ; time.Sleep(pause / 5) {
		n.send(t, 1, "r@one.test")
		if slices.Contains(n.q.takeRecovered(), "upstream sink") {
			break
		}
		if time.Now().After(end) {
			t.Fatal("what was refused is not due")
		}
	}
	time.Sleep(10 * pause)
	n.send(t, 1, "r@one.test")
	if due := n.q.takeRecovered(); len(due) > 0 {
		t.Errorf("due again: %q", due)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	backoff := []time.Duration{time.Minute, 5 * time.Minute, 15 * time.Minute}
	var r refusal
	var now time.Time
	over := func(after time.Duration) bool {
		now = now.Add(after)
		return r.isOver(now, backoff)
	}
	if now = time.Unix(1_700_000_000, 0); over(0) {
		t.Error("nothing was refused")
	}
	for call, pause := range []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, 15 * time.Minute} {
		r.met(now, backoff)
		r.met(now.Add(pause/2), backoff)
		if over(pause-time.Second) || !over(time.Second) || over(0) {
			t.Errorf("call %d does not come after %v", call, pause)
		}
	}
	if over(15 * time.Minute); r.calls != 0 {
		t.Errorf("after mail was taken for as long: %+v", r)
	}
}

// TestBreakerTwoUsers has an upstream refuse mail for the account: one user's opens nothing, a
// second one's does, also while conversations go on. A message that is taken closes it.
func TestBreakerTwoUsers(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	s.server.On(smtptest.PhaseDot, smtptest.Always(smtptest.Reply("535 5.7.8 the quota is used up")))
	n := s.node("a", nil)
	for range 3 {
		if o := n.send(t, 1, "r@one.test"); o.Scope != string(upstream.ScopeAccount) || o.NotAnAttempt || o.WaitsFor != "upstream sink" {
			t.Fatalf("%+v", o)
		}
	}
	n.send(t, 0, "r@one.test") // a notice about it
	n.never(t)
	n.send(t, 2, "r@one.test")
	if state := n.await(t, true); state.Stage != "dot" || state.Scope != "account" || !state.Account() {
		t.Errorf("%+v", state)
	}
	if o := n.send(t, 3, "r@one.test"); !o.NotAnAttempt || o.WaitsFor != "upstream sink" || o.Scope != "account" {
		t.Errorf("%+v", o)
	}
	if due := n.q.takeRecovered(); len(due) > 0 { // not even by a new node's first transactions
		t.Errorf("due is the mail for %q", due)
	}
	n.q.mu.Lock()
	for range 3 {
		n.q.waiting = append(n.q.waiting, message(t, "r@one.test"))
	}
	n.q.mu.Unlock()
	tried := s.server.Reached(smtptest.PhaseDot)
	for i := range 2 { // a probe gets through, and one message meets with the same
		s.hurry()
		s.server.Wait(t, "a message", func() bool { return s.server.Reached(smtptest.PhaseDot) == tried+i+1 })
		for failures := 0; failures == 0; time.Sleep(10 * time.Millisecond) {
			if err := s.db.Pool.QueryRow(t.Context(), `select failures from upstream_breaker`).Scan(&failures); err != nil {
				t.Fatal(err)
			}
		}
	}
	if o := n.send(t, 3, "r@one.test"); !o.NotAnAttempt || !n.breakers.State("sink").Account() {
		t.Errorf("%+v", o)
	}
	if got := s.server.Reached(smtptest.PhaseDot) - tried; got != 2 {
		t.Errorf("%d messages are sent for two probes", got)
	}
	s.server.On(smtptest.PhaseDot, nil)
	s.hurry()
	n.await(t, false)
	if o := n.send(t, 3, "r@one.test"); o.Result != queue.Delivered {
		t.Errorf("%+v", o)
	}
	n.send(t, 1, "r@one.test")
	s.server.On(smtptest.PhaseDot, smtptest.Once(smtptest.Reply("535 5.7.8 the quota is used up")))
	n.send(t, 2, "r@one.test")
	n.send(t, 3, "r@one.test")
	s.server.On(smtptest.PhaseDot, smtptest.Once(smtptest.Reply("535 5.7.8 the quota is used up")))
	n.send(t, 1, "r@one.test") // one after each other, but mail was taken in between
	time.Sleep(1500 * time.Millisecond)
	if state := n.breakers.State("sink"); state.Open || state.Opening != 1 {
		t.Errorf("%+v", state)
	}
}

// TestBreakerIsNotProvoked has a user whose sender, recipient and text are answered as if the
// account were at fault: a probe with another user's sender shows that it is not. When all
// senders are answered so, the probe opens the breaker.
func TestBreakerIsNotProvoked(t *testing.T) {
	t.Parallel()
	for _, all := range []bool{false, true} {
		s := newSharing(t)
		n := s.node("a", nil)
		n.send(t, 2, "r@one.test")
		s.server.On(smtptest.PhaseMail, func(at smtptest.Session) smtptest.Action {
			if all || strings.Contains(at.Command, "user1@") {
				return smtptest.Reply("550 5.7.1 Authentication required")
			}
			return smtptest.Normal()
		})
		for range 5 {
			if o := n.send(t, 1, "r@one.test"); o.Scope != string(upstream.ScopeAccount) && !all {
				t.Errorf("%+v", o)
			}
		}
		if all {
			if state := n.await(t, true); state.Stage != "mail" || state.Sender != "user2@sender.test" {
				t.Errorf("%+v", state)
			}
			continue
		}
		s.server.Wait(t, "the probe", func() bool { return s.server.Reached(smtptest.PhaseReset) > 0 })
		n.never(t)
		if o := n.send(t, 2, "r@one.test"); o.Result != queue.Delivered {
			t.Errorf("%+v", o)
		}
	}
}

// TestBreakerEchoes has servers repeat what users write: nothing opens.
func TestBreakerEchoes(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	n := s.node("a", nil)
	n.send(t, 3, "r@one.test")
	s.server.On(smtptest.PhaseRcpt, func(at smtptest.Session) smtptest.Action {
		return smtptest.Reply("550 5.1.1 " + strings.TrimPrefix(at.Command, "RCPT TO:") + " unknown")
	})
	s.server.On(smtptest.PhaseDot, smtptest.Always(smtptest.Reply("554 5.6.0 Subject: authentication required, 535 5.7.8 daily quota")))
	for user := range int64(4) {
		n.send(t, user, "authentication.required.535.5.7.8@one.test")
	}
	s.server.On(smtptest.PhaseRcpt, nil)
	for user := range int64(4) {
		n.send(t, user, "r@one.test")
	}
	n.never(t)
}

// TestBreakerShortWait has an upstream with a rate that is met for seconds only: its mail waits for
// these, and no breaker opens.
func TestBreakerShortWait(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	up := upstreamAt(s.server)
	up.Replies = upstream.Table("ses")
	n := s.node("a", func(e *Engine) { e.cfg.Routes = routes{def: up} })
	s.server.On(smtptest.PhaseDot, smtptest.Always(smtptest.Reply("454 Throttling failure: Maximum sending rate exceeded.")))
	for user := range int64(4) {
		if o := n.send(t, user, "r@one.test"); o.Scope != string(upstream.ScopeAccount) || o.RetryIn > time.Minute {
			t.Errorf("%+v", o)
		}
	}
	n.never(t)
}

// TestBreakerRestart has the upstream away for as long as the pauses last, while mail comes: the
// breaker stays closed, and no message waits for more than the pauses.
func TestBreakerRestart(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	var down atomic.Int32
	n := s.node("a", func(e *Engine) {
		dial := e.dialer.Dial
		e.dialer.Dial = func(ctx context.Context, to connect.Target) (net.Conn, error) {
			if down.Add(-1) >= 0 {
				return nil, syscall.ECONNREFUSED
			}
			return dial(ctx, to)
		}
	})
	for range 3 {
		if o := n.send(t, 1, "r@one.test"); o.Result != queue.Delivered {
			t.Fatalf("%+v", o)
		}
		down.Store(2)
		s.server.On(smtptest.PhaseMail, smtptest.Once(smtptest.Close()))
	}
	n.send(t, 1, "r@one.test")
	n.never(t)
}

// TestBreakerOwnTrouble has a node that alone cannot reach the upstream: the other one goes on,
// closes the breaker, and it is not opened again.
func TestBreakerOwnTrouble(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	b := s.node("b", nil)
	b.send(t, 1, "r@one.test")
	a := s.node("a", func(e *Engine) {
		e.dialer.Dial = func(context.Context, connect.Target) (net.Conn, error) { return nil, syscall.ENETUNREACH }
	})
	a.send(t, 2, "r@one.test")
	b.await(t, true)
	if o := b.send(t, 1, "r@one.test"); o.Result != queue.Delivered {
		t.Errorf("%+v", o)
	}
	a.await(t, false)
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if o := a.send(t, 2, "r@one.test"); !o.NotAnAttempt { // it has tried again by itself
			break
		}
		if time.Now().After(end) {
			t.Fatal("it does not try again")
		}
	}
	time.Sleep(1500 * time.Millisecond)
	if state := b.breakers.State("sink"); state.Open || state.Opening != 1 {
		t.Errorf("%+v", state)
	}
}

// TestBreakerNextWay has a route with two ways: mail takes the second while the breaker of the
// first is open, without a connection. While both are open it waits for one of them, and is due
// when any of them closes.
func TestBreakerNextWay(t *testing.T) {
	t.Parallel()
	s := newSharing(t)
	s.second = smtptest.Start(t, smtptest.Config{})
	if _, err := s.db.Pool.Exec(t.Context(), `insert into upstream (name, host, port, tls) values ('second', '127.0.0.1', 25, 'none')`); err != nil {
		t.Fatal(err)
	}
	n := s.node("a", func(e *Engine) { e.cfg.Routes = several{wayTo("sink", s.server), wayTo("second", s.second)} })
	refuse := smtptest.Always(smtptest.Reply("554 5.7.1 not you"))
	s.server.On(smtptest.PhaseBanner, refuse)
	if o := n.send(t, 1, "r@one.test"); o.Result != queue.Delivered || o.Upstream != "second" {
		t.Fatalf("%+v", o)
	}
	n.await(t, true)
	conns := s.server.Conns()
	o := n.send(t, 2, "r@one.test")
	if o.Result != queue.Delivered || o.Upstream != "second" || o.Left == nil || !strings.Contains((*o.Left)[0].Reply, "waits for upstream sink, not used until") {
		t.Errorf("%+v", o)
	}
	if s.server.Conns() != conns {
		t.Errorf("%d connections for mail that goes on", s.server.Conns()-conns)
	}
	n.breakers.Open("second", breaker.Cause{Stage: "dot", Scope: "account", Reply: "554 5.2.0 quota"})
	n.awaitOf(t, "second", true)
	o = n.send(t, 3, "r@one.test")
	if !o.NotAnAttempt || o.RetryIn < openWait || o.Scope != "account" && o.Scope != "host" {
		t.Errorf("%+v", o)
	}
	n.q.takeRecovered()
	s.server.On(smtptest.PhaseBanner, nil)
	other := map[string]string{"upstream sink": "second", "upstream second": "sink"}[o.WaitsFor]
	if open, err := breaker.Hurry(t.Context(), s.db.Pool, other); open != 1 || err != nil {
		t.Fatal(open, err)
	}
	n.recovers(t, o.WaitsFor)
}
