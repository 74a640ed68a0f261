package delivery

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// fakeBudgets says what the test wants, and counts.
type fakeBudgets struct {
	mu                           sync.Mutex
	behind, take, session        *budget.Wait
	asks                         []budget.Ask
	turns                        []string
	taken, ended, entered, lefts int
	recipients                   int // of Take
}

func (b *fakeBudgets) Behind(a budget.Ask, _ int) *budget.Wait {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asks = append(b.asks, a)
	return b.behind
}

func (b *fakeBudgets) Take(_ context.Context, a budget.Ask) (func(), *budget.Wait) {
	b.mu.Lock()
	b.recipients += a.Recipients
	b.mu.Unlock()
	return b.count(b.take, &b.taken, &b.ended)
}

func (b *fakeBudgets) Session(context.Context, budget.Ask) (func(), *budget.Wait) {
	return b.count(b.session, &b.entered, &b.lefts)
}

func (b *fakeBudgets) Turn(way string, recipients int, again bool) budget.Wait {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.turns = append(b.turns, fmt.Sprintf("%s %d %v", way, recipients, again))
	return budget.Wait{Why: "sink: until later", In: 99 * time.Second}
}

func (b *fakeBudgets) count(wait *budget.Wait, in, out *int) (func(), *budget.Wait) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if wait != nil {
		return nil, wait
	}
	*in++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		*out++
	}, nil
}

// TestBudget: mail over a budget waits for its turn without an attempt, wherever that turns out,
// and what is within it counts from before its transaction until it has ended.
func TestBudget(t *testing.T) {
	t.Parallel()
	account := *piped
	account.Budget = "messages 30/m, recipients 2/m, sessions 1"
	spent := &budget.Wait{Why: "sink", In: 77 * time.Second, For: "budget sink"}
	for name, test := range map[string]struct {
		up    *upstream.Account
		set   func(*fakeBudgets)
		waits bool
		dials int64
		want  [2]int // transactions, connections
	}{
		"none":       {piped, func(*fakeBudgets) {}, false, 1, [2]int{}},
		"within":     {&account, func(*fakeBudgets) {}, false, 1, [2]int{1, 1}},
		"at door":    {&account, func(b *fakeBudgets) { b.behind = spent }, true, 0, [2]int{}},
		"at begin":   {&account, func(b *fakeBudgets) { b.take = spent }, true, 1, [2]int{0, 1}},
		"no session": {&account, func(b *fakeBudgets) { b.session = spent }, true, 0, [2]int{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := smtptest.New(smtptest.Config{})
				defer server.Close()
				q, b := newFakeQueue(), &fakeBudgets{}
				test.set(b)
				e := newEngine(q, Config{Routes: routes{def: test.up}, NoClaim: true, Budgets: b})
				_, dials := pipes(e, server)
				e.Start()
				d := message(t, "a@one.test", "b@one.test")
				e.Take(d)
				time.Sleep(time.Minute) // the connection is idle and then closed
				synctest.Wait()
				stop(t, e)
				for n := range d.Recipients {
					o := q.outcome(t, d, n)
					if !test.waits && o.Result != queue.Delivered {
						t.Errorf("outcome %+v", o)
					}
					if test.waits && (o.Result != queue.Deferred || !o.NotAnAttempt || o.WaitsFor != "budget sink" || o.RetryIn != 99*time.Second || !strings.HasPrefix(o.Reply.String(), "451 4.4.5 waits for the budget of upstream sink: until")) {
						t.Errorf("outcome %+v", o)
					}
				}
				if want := []string{"budget sink 2 false"}; test.waits != slices.Equal(b.turns, want) {
					t.Errorf("turns %q, want %q: %v", b.turns, want, test.waits)
				}
				if got := dials.Load(); got != test.dials {
					t.Errorf("%d connections, want %d", got, test.dials)
				}
				if began, ended := [2]int{b.taken, b.entered}, [2]int{b.ended, b.lefts}; began != test.want || ended != test.want {
					t.Errorf("transactions and connections: %v began and %v ended, want %v", began, ended, test.want)
				}
			})
		})
	}
}

// TestBudgetOfLimits: a server takes not all recipients in one transaction. Each counts once.
func TestBudgetOfLimits(t *testing.T) {
	t.Parallel()
	for limit, to := range map[string][]string{
		"RCPTMAX=2":                 {"a@one.test", "b@one.test", "c@one.test", "d@one.test", "e@one.test"},
		"RCPTDOMAINMAX=1":           {"a@one.test", "b@two.test", "c@one.test", "d@three.test", "e@two.test"},
		"RCPTMAX=2 RCPTDOMAINMAX=2": {"a@one.test", "b@two.test", "c@one.test", "d@three.test", "e@two.test"},
	} {
		t.Run(limit, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{Extensions: []string{"LIMITS " + limit}})
			account := upstreamAt(server)
			account.Budget = "recipients 100/m"
			q, b := newFakeQueue(), &fakeBudgets{}
			e := startEngine(t, q, Config{Routes: routes{def: account}, Budgets: b})
			e.Take(message(t, to...))
			q.waitEnded(t, 5)
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.taken != 3 || b.recipients != 5 {
				t.Errorf("%d transactions, %d recipients were counted, want 3 and 5", b.taken, b.recipients)
			}
		})
	}
}

// TestBudgetAsk: a transaction has no more recipients than fit, and what was tried or has waited
// goes first.
func TestBudgetAsk(t *testing.T) {
	t.Parallel()
	account := *piped
	account.Budget = "recipients 2/m"
	synctest.Test(t, func(t *testing.T) {
		server := smtptest.New(smtptest.Config{})
		defer server.Close()
		q, b := newFakeQueue(), &fakeBudgets{}
		e := newEngine(q, Config{Routes: routes{def: &account}, NoClaim: true, Budgets: b})
		pipes(e, server)
		e.Start()
		defer stop(t, e)
		e.Take(message(t, "a@one.test", "b@one.test", "c@one.test"))
		tried, waited := message(t, "d@one.test"), message(t, "e@one.test")
		tried.Recipients[0].Attempts = 1
		waited.Recipients[0].WaitsFor = "budget sink"
		e.Take(tried)
		e.Take(waited)
		synctest.Wait()
		want := []budget.Ask{{Recipients: 2}, {Recipients: 1}, {Recipients: 1, Again: true}, {Recipients: 1, Again: true}}
		if len(b.asks) != len(want) {
			t.Fatalf("%+v", b.asks)
		}
		for i, a := range b.asks {
			want[i].Upstream, want[i].Setting = "sink", account.Budget
			if a != want[i] {
				t.Errorf("%+v, want %+v", a, want[i])
			}
		}
	})
}

// TestBudgetFailover: a spent way is left for the next one, without a turn; if that does not take
// the message either, it waits for whichever is first, and has a turn only where that is the
// budget.
func TestBudgetFailover(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spent  time.Duration
		down   bool
		paused bool
		turns  []string
		waits  string
	}{
		"next way takes it":  {time.Hour, false, false, nil, ""},
		"budget is first":    {2 * time.Second, true, false, []string{"budget a 1 false"}, "budget a"},
		"next way is first":  {24 * time.Hour, true, false, nil, "upstream b"},
		"next way is paused": {time.Hour, true, true, []string{"budget a 1 false"}, "budget a"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q, n := newFakeQueue(), &network{}
				b := &fakeBudgets{behind: &budget.Wait{Why: "a", In: test.spent, For: "budget a"}}
				e, ways := n.engine(q, Config{Budgets: b}, fakes(t, 2)...)
				ways[0].Upstream.Budget = "messages 30/m"
				n.set("b", test.down)
				if test.paused {
					ways[1].Err = &upstream.PausedError{Upstream: "b"}
				}
				e.Start()
				defer stop(t, e)
				d := message(t, "x@one.test")
				e.Take(d)
				time.Sleep(time.Minute)
				synctest.Wait()
				o := q.outcome(t, d, 0)
				if delivered := o.Result == queue.Delivered; delivered == test.down || o.WaitsFor != test.waits || !slices.Equal(b.turns, test.turns) {
					t.Errorf("%+v, turns %q", o, b.turns)
				}
				if test.waits == "budget a" && (o.RetryIn != 99*time.Second || test.paused && o.Scope != "host") { // P11: a fault of ours
					t.Errorf("in %v, not at its turn, or the fault is %q", o.RetryIn, o.Scope)
				}
				if test.waits != "budget a" && leftOf(o) != "a" {
					t.Errorf("left %q", leftOf(o))
				}
				if test.paused && (!o.NotAnAttempt || o.Reply.Text != "waits for the budget of upstream sink: until later; b: upstream b is paused") {
					t.Errorf("%+v", o)
				}
			})
		})
	}
}
