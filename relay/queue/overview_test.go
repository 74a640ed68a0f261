package queue

import (
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// share is what an overview says of one state, over all ages.
func share(o Overview, state State) (recipients int64, oldest time.Duration) {
	for _, s := range o.Shares {
		if s.State == state {
			recipients, oldest = recipients+s.Recipients, max(oldest, s.Oldest)
		}
	}
	return recipients, oldest
}

func TestOverview(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	r := NewReader(db.Pool)
	o, err := r.Overview(ctxOf(t))
	if err != nil || len(o.Shares) > 0 || o.Overdue != 0 || o.Nodes != 0 || o.Holds != 0 {
		t.Fatalf("an empty queue: %+v, %v", o, err)
	}
	q := start(t, calmConfig(db))
	owned, _ := put(t, q, true, "a@example.net", "b@example.net", "c@example.net")
	waiting, _ := put(t, q, false, "d@example.net", "e@example.net")
	becomes(t, db, waiting.ID, "0 queued;1 queued")
	if _, err := NewAdmin(db.Pool).Hold(ctxOf(t), Filter{Recipient: "e@example.net"}, false); err != nil {
		t.Fatal(err)
	}
	exec(t, db, `update recipient set accepted_at = now() - interval '2 days', next_attempt_at = now() - interval '10 minutes' where message_id = $1`, waiting.ID)
	exec(t, db, `update recipient set accepted_at = now() - interval '20 minutes' where message_id = $1 and n = 0`, owned.ID)
	exec(t, db, `insert into hold (user_id, credential_id, reason, made_by) values (7, 0, 'test', 'test')`)

	if o, err = r.Overview(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[State]int64{StateWaiting: 1, StateHeld: 1, StateOwned: 3, StateFailed: 0} {
		if n, _ := share(o, state); n != want {
			t.Errorf("%s: %d recipients, want %d", state, n, want)
		}
	}
	if _, oldest := share(o, StateWaiting); oldest < 48*time.Hour || oldest > 49*time.Hour {
		t.Errorf("the oldest that waits is %v old", oldest)
	}
	young := slices.IndexFunc(o.Shares, func(s Share) bool { return s.State == StateOwned && s.Step == 0 && s.Recipients == 2 })
	older := slices.IndexFunc(o.Shares, func(s Share) bool { return s.State == StateOwned && s.Step == 2 && s.Recipients == 1 })
	old := slices.IndexFunc(o.Shares, func(s Share) bool { return s.State == StateWaiting && s.Step == len(AgeSteps()) })
	if young < 0 || older < 0 || old < 0 {
		t.Errorf("shares %+v", o.Shares)
	}
	if o.Overdue < 10*time.Minute || o.Overdue > 11*time.Minute || o.Nodes != 1 || o.Holds != 1 {
		t.Errorf("%+v", o)
	}
	if err := r.Ping(ctxOf(t)); err != nil {
		t.Error(err)
	}
}

// watcher collects what an Observer is told.
type watcher struct {
	mu      sync.Mutex
	commits []Commit
	claims  []Claim
}

func (w *watcher) observer() Observer {
	return Observer{
		Commit: func(c Commit) { w.mu.Lock(); defer w.mu.Unlock(); w.commits = append(w.commits, c) },
		Claim:  func(c Claim) { w.mu.Lock(); defer w.mu.Unlock(); w.claims = append(w.claims, c) },
	}
}

// items sums what was told of one kind of work with one fate.
func (w *watcher) items(work Work, fate Fate) (items int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.commits {
		if c.Work == work && c.Fate == fate && c.Took > 0 {
			items += c.Items
		}
	}
	return items
}

func TestObserver(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	w := &watcher{}
	cfg := calmConfig(db)
	cfg.Observer = w.observer()
	fail := make(chan error, 1)
	q := start(t, cfg, func(q *Queue) {
		q.faults.afterCommit = func(*pgx.Conn) error {
			select {
			case err := <-fail:
				return err
			default:
				return nil
			}
		}
	})
	_, d := put(t, q, true, "a@example.net")
	q.Settle(outcome(d, 0, Delivered))
	large, err := q.Enqueue(ctxOf(t), message(), rcpts("b@example.net"), NewBody([]byte(strings.Repeat("x", smallBody+1))), true)
	if err != nil {
		t.Fatal(err)
	}
	q.Settle(outcome(large, 0, Failed))
	eventually(t, "both are settled", func() bool { return w.items(WorkSettle, Committed) == 2 })
	notices, err := q.ClaimNotices(ctxOf(t), 10)
	if err != nil || len(notices) != 1 {
		t.Fatalf("%d notices, %v", len(notices), err)
	}
	notice := message()
	notice.Sender = smtp.Address{}
	if err := q.EnqueueNotice(ctxOf(t), notices[0], notice, rcpts("alice@example.com")[0], []byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the notice is claimed", func() bool {
		list, err := q.Claim(ctxOf(t), ClaimRequest{Messages: 10, PerDestination: 10})
		return err == nil && len(list) == 1
	})
	fail <- errors.New("the connection broke")
	put(t, q, true, "c@example.net") // in doubt, and found to be there
	for work, want := range map[Work]int{WorkEnqueue: 2, WorkLarge: 1, WorkNotice: 1} {
		if n := w.items(work, Committed); n != want {
			t.Errorf("%s: %d items committed, want %d", work, n, want)
		}
	}
	if n := w.items(WorkEnqueue, InDoubt); n != 1 {
		t.Errorf("%d messages were in doubt, want 1", n)
	}
	last := w.claims[len(w.claims)-1]
	if last.Messages != 1 || last.Recipients != 1 || last.Took <= 0 || last.Err != nil {
		t.Errorf("the last claim: %+v", last)
	}
}

func TestStats(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	_, d := put(t, q, true, "a@example.net")
	if s := q.Stats(); s.Epoch != q.Epoch() || s.LeaseLeft <= 0 || s.LeaseLeft > q.cfg.Trust || s.Down || s.InHand != 1 {
		t.Errorf("%+v", s)
	}
	exec(t, db, `update node set reaped_at = now()`)
	exec(t, db, `update recipient set owner = null`)
	q.Settle(outcome(d, 0, Delivered))
	q.epochs.lookNow()
	eventually(t, "the loss and the fence are counted", func() bool {
		s := q.Stats()
		return s.EpochsLost == 1 && s.Fenced == 1 && s.InHand == 0
	})
	if err := q.Close(ctxOf(t)); err != nil {
		t.Fatal(err)
	}
	if s := q.Stats(); s.Epoch != 0 || s.LeaseLeft != 0 {
		t.Errorf("after the end: %+v", s)
	}
}
