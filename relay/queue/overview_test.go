package queue

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

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
		q.faults.commit.After = func(*pgx.Conn) error {
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
	large, err := taken(q.Enqueue(ctxOf(t), message(), rcpts("b@example.net"), content.New([]byte(strings.Repeat("x", smallBody+1))), true))
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
