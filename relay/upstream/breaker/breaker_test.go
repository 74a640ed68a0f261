package breaker

import (
	"context"
	"fmt"
	"regexp"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/logtest"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/upstream"
)

// patience is how long a test waits for what must come.
const patience = time.Minute

// every is how often nodes read here.
const every = 50 * time.Millisecond

// cluster is a database with an upstream, and nodes.
type cluster struct {
	t   *testing.T
	db  *pgtest.DB
	log *logtest.Lines

	mu      sync.Mutex
	probes  map[string]int // of each node
	changes map[string]int // that each node has seen
	fault   *Cause         // what a probe meets
	asked   string         // the sender of the last
	reached chan string
	held    chan struct{} // probes wait for it; nil: they do not

	waiting int    // messages
	sent    int    // of them
	refusal *Cause // what they meet
	lost    bool   // they have no answer
}

func newCluster(t *testing.T) *cluster {
	c := &cluster{t: t, db: pgtest.New(t), log: &logtest.Lines{}, probes: map[string]int{}, changes: map[string]int{}, reached: make(chan string, 100)}
	c.exec(`insert into upstream (name, host, port, tls) values ('out', 'smtp.example', 25, 'none')`)
	return c
}

func (c *cluster) exec(sql string, args ...any) {
	c.t.Helper()
	if _, err := c.db.Pool.Exec(c.t.Context(), sql, args...); err != nil {
		c.t.Fatal(err)
	}
}

// due has the next probe due, and an open lease over if it is to end.
func (c *cluster) due(lease bool) {
	c.exec(`update upstream_breaker set next_probe_at = clock_timestamp() - interval '1 second', lease_until = case when not $1 then lease_until end`, lease)
}

func (c *cluster) set(fault *Cause) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fault = fault
}

func (c *cluster) counts(node string) (probes, changes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.probes[node], c.changes[node]
}

// node is one that does not run yet.
func (c *cluster) node(name string, db pg.DB) *Breakers {
	b := New(Config{
		DB: db, Node: name, Log: c.log.Logger(), Backoff: []time.Duration{30 * time.Second, time.Minute},
		Probe: func(ctx context.Context, _, sender string) (*Cause, error) {
			c.mu.Lock()
			c.probes[name]++
			c.asked = sender
			fault, held := c.fault, c.held
			c.mu.Unlock()
			c.reached <- name
			if held != nil {
				select {
				case <-held:
				case <-ctx.Done():
					return nil, ctx.Err()
				}
			}
			return fault, nil
		},
	})
	b.every, b.pause = every, every
	return b
}

// run runs a node until its end, which the function it returns brings about.
func (c *cluster) run(b *Breakers) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.Run(ctx, mail{c, b})
	}()
	stop = sync.OnceFunc(func() { cancel(); <-done })
	c.t.Cleanup(stop)
	return stop
}

// mail is the mail of a node.
type mail struct {
	c *cluster
	b *Breakers
}

func (m mail) UpstreamChanged(string) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	m.c.changes[m.b.cfg.Node]++
}

// OneDue sends one of the messages that wait.
func (m mail) OneDue(context.Context, string) (bool, error) {
	m.c.mu.Lock()
	defer m.c.mu.Unlock()
	if m.c.waiting == 0 {
		return false, nil
	}
	m.c.waiting--
	if !m.b.Admit("out") || m.b.Admit("out") {
		m.c.t.Error("not one message is let through")
	}
	m.c.sent++
	switch {
	case m.c.lost:
	case m.c.refusal != nil:
		go m.b.Open("out", *m.c.refusal)
	default:
		go m.b.Works("out")
	}
	return true, nil
}

// await waits until a node sees the breaker so.
func (c *cluster) await(b *Breakers, what string, is func(State) bool) State {
	c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		s := b.State("out")
		if is(s) {
			return s
		}
		if time.Now().After(end) {
			c.t.Fatalf("waited for %s: %+v; log %s", what, s, c.log)
		}
	}
}

// awaitChanges waits until a node has seen so many changes.
func (c *cluster) awaitChanges(node string, n int) {
	c.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		if _, seen := c.counts(node); seen >= n {
			return
		}
		if time.Now().After(end) {
			c.t.Fatalf("node %s did not see %d changes; log %s", node, n, c.log)
		}
	}
}

func open(s State) bool   { return s.Open }
func closed(s State) bool { return !s.Open && s.Opening > 0 }

var refused = Cause{Stage: "auth", Scope: upstream.ScopeAccount, Reply: "535 5.7.8 wrong password", Sender: "a@example.com"}

func TestStatements(t *testing.T) {
	t.Parallel()
	bound, unused := texts.Bound()
	if len(unused) > 0 {
		t.Errorf("nobody runs %q", unused)
	}
	pgtest.Prepare(t, bound)
}

// One node opens it, all see it; one of them probes, and the one that gets through closes it,
// for all, once.
func TestAllNodes(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var nodes []*Breakers
	for i := range 3 {
		b := c.node(fmt.Sprint(i), c.db.Pool)
		c.run(b)
		nodes = append(nodes, b)
	}
	c.set(&refused)
	nodes[0].Open("out", refused)
	for _, b := range nodes {
		s := c.await(b, "it to be open", open)
		left := time.Until(s.NextProbe)
		if s.Node != "0" || s.Reply != refused.Reply || s.Stage != "auth" || s.Sender != "a@example.com" || left > 30*time.Second || left < 10*time.Second || s.Opening != 1 {
			t.Fatalf("%+v, probe in %v", s, left)
		}
	}
	nodes[1].Open("out", Cause{Stage: "connect", Scope: "host", Reply: "later"}) // it is open already
	c.due(false)
	s := c.await(nodes[2], "the failed probe", func(s State) bool { return s.Failures == 1 })
	if left := time.Until(s.NextProbe); left > time.Minute || left < 31*time.Second {
		t.Errorf("the second probe in %v", left)
	}
	c.set(nil)
	c.due(false)
	for _, b := range nodes {
		c.await(b, "it to be closed", closed)
	}
	probes := 0
	for i := range nodes {
		c.awaitChanges(fmt.Sprint(i), 2) // that it opened, and closed
		n, _ := c.counts(fmt.Sprint(i))
		probes += n
	}
	if probes != 2 || c.asked != "a@example.com" {
		t.Errorf("%d probes, asked for %q", probes, c.asked)
	}
	var told string
	if err := c.db.Pool.QueryRow(t.Context(), `select string_agg(kind || ' ' || object || ' ' || (detail->>'node'), ', ' order by id) from event`).Scan(&told); err != nil ||
		!regexp.MustCompile(`^breaker.open out 0, breaker.closed out [0-2]$`).MatchString(told) {
		t.Errorf("events: %s, %v", told, err)
	}
	if c.log.Count("upstream opened") != 1 || c.log.Count("upstream closed") != 1 {
		t.Errorf("log: %s", c.log)
	}
}

// The wait of the table of replies is that before the probe, and after each that hears the same.
func TestWaitOfTheReply(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	quota := Cause{Stage: "dot", Scope: upstream.ScopeAccount, Reply: "554 5.2.0 quota", Wait: time.Hour}
	c.set(&quota)
	b := c.node("a", c.db.Pool)
	c.run(b)
	b.Open("out", quota)
	for failures := range 2 {
		s := c.await(b, "a wait", func(s State) bool { return s.Open && s.Failures == failures })
		if left := time.Until(s.NextProbe); left < 59*time.Minute || left > time.Hour {
			t.Errorf("after %d probes the next in %v", failures, left)
		}
		c.due(false)
	}
}

// Many nodes open it concurrently: one has.
func TestConcurrentOpens(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	var wg sync.WaitGroup
	var first atomic.Int32
	for i := range 20 {
		wg.Go(func() {
			opened, err := (&table{c.db.Pool, fmt.Sprint(i), []time.Duration{time.Minute}}).open(t.Context(), "out", &refused)
			if err != nil {
				t.Error(err)
			}
			if opened {
				first.Add(1)
			}
		})
	}
	wg.Wait()
	if first.Load() != 1 {
		t.Errorf("%d have opened it", first.Load())
	}
	if opened, err := (&table{c.db.Pool, "a", []time.Duration{time.Minute}}).open(t.Context(), "removed", &refused); opened || err != nil {
		t.Errorf("an upstream that is gone: %v, %v", opened, err)
	}
}

// A node dies while it probes: another one probes after the lease, and what the dead one says
// later does not count. One that stops gives the lease back.
func TestDeathWhileProbing(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	dead := &table{c.db.Pool, "dead", []time.Duration{time.Minute}}
	if opened, err := dead.open(t.Context(), "out", &refused); !opened || err != nil {
		t.Fatal(opened, err)
	}
	c.due(false)
	lease, err := dead.take(t.Context(), "out", leaseTime)
	if lease == 0 || err != nil {
		t.Fatal(lease, err)
	}
	c.held = make(chan struct{})
	a, b := c.node("a", c.db.Pool), c.node("b", c.db.Pool)
	stop := c.run(a)
	if s := c.await(a, "the dead node to probe", func(s State) bool { return s.Prober == "dead" }); !s.Open {
		t.Errorf("%+v", s)
	}
	time.Sleep(2 * every) // it leaves the probe to the other
	if n, _ := c.counts("a"); n != 0 {
		t.Error("two nodes probe")
	}
	c.due(true)
	if who := <-c.reached; who != "a" {
		t.Errorf("%s probes", who)
	}
	if closed, err := dead.close(t.Context(), "out", lease, 0); closed || err != nil {
		t.Errorf("the dead node closes: %v, %v", closed, err)
	}
	if err := dead.fail(t.Context(), "out", lease, &Cause{Reply: "from the dead"}); err != nil {
		t.Error(err)
	}
	c.run(b)
	stop()
	if who := <-c.reached; who != "b" {
		t.Errorf("%s probes", who)
	}
	close(c.held)
	if s := c.await(b, "it to be closed", closed); s.Reply != refused.Reply || s.Phase != "closed" {
		t.Errorf("%+v", s)
	}
}

// A delivery closes the opening that it knew, and no later one.
func TestDeliveryCloses(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a, b := c.node("a", c.db.Pool), c.node("b", c.db.Pool)
	c.run(a)
	c.run(b)
	a.Works("out") // it was never open
	a.Open("out", refused)
	s := c.await(b, "it to be open", open)
	b.Works("out")
	c.await(a, "it to be closed", closed)
	c.awaitChanges("b", 2)
	again := Cause{Stage: "dot", Scope: upstream.ScopeAccount, Reply: "quota"}
	if opened, err := a.table.open(t.Context(), "out", &again); !opened || err != nil {
		t.Fatal(opened, err)
	}
	if closed, err := b.table.close(t.Context(), "out", 0, s.Opening); closed || err != nil {
		t.Errorf("a delivery of before closes: %v, %v", closed, err)
	}
}

// A node that alone cannot reach the upstream opens it once; one that met with a refusal of the
// account, or has closed it itself, may open it again.
func TestOwnTrouble(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a, b := table{c.db.Pool, "a", []time.Duration{time.Minute}}, table{c.db.Pool, "b", []time.Duration{time.Minute}}
	away, quota := Cause{Stage: "connect", Scope: "host", Reply: "no answer"}, Cause{Stage: "dot", Scope: upstream.ScopeAccount, Reply: "quota"}
	opening := int64(0)
	for _, step := range []struct {
		opens, closes *table
		cause         Cause
		want          bool
	}{
		{&a, &b, away, true}, {&a, &b, away, false}, {&a, &a, quota, true}, {&a, &b, away, true}, {&b, &a, away, true}, {&b, &a, away, false}, {&a, &b, away, true},
	} {
		opened, err := step.opens.open(t.Context(), "out", &step.cause)
		if opened != step.want || err != nil {
			t.Fatalf("%+v: %v, %v", step, opened, err)
		}
		if !opened {
			continue
		}
		opening++
		if closed, err := step.closes.close(t.Context(), "out", 0, opening); !closed || err != nil {
			t.Fatalf("%+v: %v, %v", step, closed, err)
		}
	}
	c.exec(`update upstream_breaker set closed_at = closed_at - interval '10 minutes'`)
	if opened, err := a.open(t.Context(), "out", &away); !opened || err != nil {
		t.Errorf("after ten minutes: %v, %v", opened, err)
	}
}

// Probes get through, mail does not: the waits grow.
func TestOnlyProbesGetThrough(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	a := table{c.db.Pool, "a", []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute}}
	cause := Cause{Stage: "data", Scope: "connection", Reply: "lost"}
	for i, want := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 2 * time.Minute} {
		if opened, err := a.open(t.Context(), "out", &cause); !opened || err != nil {
			t.Fatal(opened, err)
		}
		list, err := List(t.Context(), c.db.Pool)
		if err != nil || len(list) != 1 {
			t.Fatal(list, err)
		}
		if left := time.Until(list[0].NextProbe); left > want || left < want-20*time.Second {
			t.Errorf("opening %d: the probe in %v, want %v", i, left, want)
		}
		c.due(false)
		lease, err := a.take(t.Context(), "out", leaseTime)
		if lease == 0 || err != nil {
			t.Fatal(lease, err)
		}
		if closed, err := a.close(t.Context(), "out", lease, 0); !closed || err != nil {
			t.Fatal(closed, err)
		}
	}
}

// A suspicion is looked into by a probe, once a minute, and opens only for the account.
func TestSuspect(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		meets *Cause
		opens bool
	}{{nil, false}, {&Cause{Stage: "connect", Scope: "host", Reply: "no answer"}, false}, {&Cause{Stage: "mail", Scope: upstream.ScopeAccount, Reply: "550 5.4.5 limit"}, true}} {
		c := newCluster(t)
		c.set(test.meets)
		b := c.node("a", c.db.Pool)
		c.run(b)
		for range 3 {
			b.Suspect("out", "other@example.com")
		}
		<-c.reached
		if test.opens {
			c.await(b, "it to be open", open)
		}
		time.Sleep(every)
		if n, _ := c.counts("a"); n != 1 || c.asked != "other@example.com" || b.State("out").Open != test.opens {
			t.Errorf("%+v: %d probes, asked for %q, %+v", test.meets, n, c.asked, b.State("out"))
		}
	}
}

// An operator asks: it is probed now, unless it is paused.
func TestHurry(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.exec(`insert into upstream (name, host, port, tls, paused_at) values ('other', 'smtp.example', 25, 'none', now())`)
	b := c.node("a", c.db.Pool)
	c.run(b)
	b.Open("out", refused)
	b.Open("other", refused)
	c.await(b, "it to be open", open)
	if n, err := Hurry(t.Context(), c.db.Pool, "another"); n != 0 || err != nil {
		t.Fatal(n, err)
	}
	if s := c.await(b, "it to be open", open); time.Until(s.NextProbe) < 10*time.Second {
		t.Errorf("%+v", s)
	}
	if n, err := Hurry(t.Context(), c.db.Pool, ""); n != 2 || err != nil {
		t.Fatal(n, err)
	}
	c.await(b, "it to be closed", closed)
	time.Sleep(2 * every)
	if n, _ := c.counts("a"); n != 1 || !b.State("other").Open {
		t.Errorf("%d probes, %+v", n, b.State("other"))
	}
}

// lost is a database that goes away.
type lost struct {
	pg.DB
	away atomic.Bool
}

func (l *lost) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	if l.away.Load() {
		return nil, context.DeadlineExceeded
	}
	return l.DB.Query(ctx, sql, args...)
}

func (l *lost) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if l.away.Load() {
		return noRow{}
	}
	return l.DB.QueryRow(ctx, sql, args...)
}

func (l *lost) Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error) {
	if l.away.Load() {
		return pgconn.CommandTag{}, context.DeadlineExceeded
	}
	return l.DB.Exec(ctx, sql, args...)
}

type noRow struct{}

func (noRow) Scan(...any) error { return context.DeadlineExceeded }

// Without the database states go out of date and are forgotten; what a node has to tell is told
// when it is back, unless it is true no longer.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	db := &lost{DB: c.db.Pool}
	b := c.node("a", db)
	c.run(b)
	b.Open("out", refused)
	c.await(b, "it to be open", open)
	db.away.Store(true)
	c.await(b, "the state to be forgotten", func(s State) bool { return s.Opening == 0 })
	b.Open("out", refused)
	b.Works("out") // it works since
	c.exec(`insert into upstream (name, host, port, tls) values ('other', 'smtp.example', 25, 'none')`)
	b.Open("other", refused)
	db.away.Store(false)
	for end := time.Now().Add(patience); !b.State("other").Open; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not told: %s", c.log)
		}
	}
	if n := c.log.Count("cannot read the breakers of upstreams"); n != 1 {
		t.Errorf("log: %s", c.log)
	}
	if list, err := List(t.Context(), c.db.Pool); err != nil || len(list) != 2 || list[1].Opening != 1 {
		t.Errorf("%+v, %v", list, err)
	}
}

// A node that starts hears of a breaker that closed while it was away: its mail may wait for that.
// It does not hear of one that closed long ago: mail that the account's quota keeps waiting would be due.
func TestClosedWhileAway(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.exec(`insert into upstream (name, host, port, tls) values ('old', 'smtp.example', 25, 'none')`)
	c.exec(`insert into upstream_breaker (upstream, opening, opened_by, stage, scope, reply, sender, failures, closed_at, closed_by)
		values ('out', 1, 'gone', 'auth', 'account', '535 5.7.8 no', '', 0, now(), 'gone'),
			('old', 1, 'gone', 'auth', 'account', '535 5.7.8 no', '', 0, now() - interval '3 hours', 'gone')`)
	c.run(c.node("a", c.db.Pool))
	c.awaitChanges("a", 1)
	if _, seen := c.counts("a"); seen != 1 {
		t.Errorf("%d changes", seen)
	}
}

// A breaker that opened where no probe comes lets one message through each time. It stays open while
// that is refused, also when a probe has met something else meanwhile, and closes when it is taken.
func TestMessageGetsThrough(t *testing.T) {
	t.Parallel()
	quota := Cause{Stage: upstream.StageDot, Scope: upstream.ScopeAccount, Reply: "554 5.2.0 quota"}
	for _, cause := range []Cause{quota, {Stage: upstream.StageMail, Scope: upstream.ScopeAccount, Reply: "550 5.1.8 no"}, {Stage: upstream.StageData, Scope: upstream.ScopeConnection, Reply: "lost"}} {
		c := newCluster(t)
		c.waiting, c.refusal = 1000, &cause
		a, b := c.node("a", c.db.Pool), c.node("b", c.db.Pool)
		c.run(a)
		c.run(b)
		a.Open("out", cause)
		for failures := range 3 {
			s := c.await(b, "a failure", func(s State) bool { return s.Open && s.Failures == failures })
			if s.Account() != (cause.Scope == upstream.ScopeAccount) {
				t.Errorf("%+v", s)
			}
			if failures == 1 { // the server cannot be reached for a while
				c.set(&Cause{Stage: upstream.StageConnect, Scope: upstream.ScopeHost, Reply: "no answer"})
			} else {
				c.set(nil)
			}
			c.due(false)
		}
		c.await(b, "the last failure", func(s State) bool { return s.Failures == 3 })
		c.mu.Lock()
		if c.refusal = nil; c.sent != 2 {
			t.Errorf("%d messages are sent in two probes", c.sent)
		}
		c.mu.Unlock()
		c.due(false)
		c.await(a, "it to be closed", closed)
		c.await(b, "it to be closed", closed)
		if c.sent != 3 || c.log.Count("upstream opened") != 1 {
			t.Errorf("%d messages, log: %s", c.sent, c.log)
		}
	}
}

// A message without an answer gives way to another, and where none waits the breaker closes.
func TestMessageWithoutAnswer(t *testing.T) {
	t.Parallel()
	for _, waiting := range []int{0, 3} {
		c := newCluster(t)
		c.waiting, c.lost = waiting, true
		b := c.node("a", c.db.Pool)
		c.run(b)
		b.Open("out", Cause{Stage: upstream.StageRcpt, Scope: upstream.ScopeAccount, Reply: "550 5.7.1 no"})
		c.await(b, "it to be open", open)
		c.due(false)
		c.await(b, "it to be closed", closed)
		if c.sent != waiting {
			t.Errorf("%d messages are sent, %d waited", c.sent, waiting)
		}
	}
}
