package delivery

import (
	"context"
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
	taken, ended, entered, lefts int
}

func (b *fakeBudgets) Behind(a budget.Ask, _ int) *budget.Wait {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asks = append(b.asks, a)
	return b.behind
}

func (b *fakeBudgets) Take(context.Context, budget.Ask) (func(), *budget.Wait) {
	return b.count(b.take, &b.taken, &b.ended)
}

func (b *fakeBudgets) Session(context.Context, budget.Ask) (func(), *budget.Wait) {
	return b.count(b.session, &b.entered, &b.lefts)
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
	spent := &budget.Wait{Why: "waits for the budget of upstream sink: messages 30/m until later", In: 77 * time.Second}
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
					if test.waits && (o.Result != queue.Deferred || !o.NotAnAttempt || o.WaitsFor != "budget sink" || o.RetryIn != spent.In || o.Reply.Text != spent.Why) {
						t.Errorf("outcome %+v", o)
					}
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
		waited.Recipients[0].Waited = true
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
