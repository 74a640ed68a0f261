package queue

import (
	"context"
	"testing"
	"time"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/suppression"
)

// TestSuppressedFaults: a bounce counts once, whichever way the database fails at its settle.
func TestSuppressedFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faults{
		"not persisted":       {settle: pg.Faults{Before: once(cut)}},
		"persisted but error": {settle: pg.Faults{After: once(cut)}},
		"backend killed":      {settle: pg.Faults{Before: once(terminate)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			cfg := calmConfig(db)
			cfg.Suppressed = suppression.New(suppression.Config{DB: db.Pool})
			q := start(t, cfg, func(q *Queue) { q.faults = fault })
			m, d := put(t, q, true, "a@example.net", "b@example.net")
			dead, alive := outcome(d, 0, Failed), outcome(d, 1, Delivered)
			dead.Upstream, dead.NoMailbox, alive.Upstream = "mx", true, "mx"
			q.Settle(dead, alive)
			eventually(t, "all is settled", func() bool { return !q.inHand.has(m.ID) })
			if n := count(t, db, `select count(*) from suppression where user_id = $1 and address = 'a@example.net' and strikes = 1`, m.UserID); n != 1 {
				t.Errorf("%d entries of one bounce", n)
			}
			if n := count(t, db, `select count(*) from suppression`); n != 1 {
				t.Errorf("%d entries in all", n)
			}
			m, d = put(t, q, true, "a@example.net")
			alive = outcome(d, 0, Delivered)
			alive.Upstream = "mx"
			q.Settle(alive)
			eventually(t, "all is settled", func() bool { return !q.inHand.has(m.ID) })
			if n := count(t, db, `select count(*) from event where user_id = $1 and object = 'a@example.net'
				and kind = case detail->>'by' when 'bounce' then 'suppression.added' when 'delivery' then 'suppression.removed' end`, m.UserID); n != 2 {
				t.Errorf("%d of the feed's events of the beginning and the end", n)
			}
		})
	}
}

// TestSuppressedIsClaimed: what is suppressed is so for the node that claims it, too, and its sender is told.
func TestSuppressedIsClaimed(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, list := message(), rcpts("a@example.net", "b@example.net")
	m.ID, list[1].Suppressed = NewID(), true
	if _, err := q.Enqueue(ctxOf(t), m, list, content.New([]byte("Subject: x\r\n\r\nbody\r\n")), false); err != nil {
		t.Fatal(err)
	}
	var got []*Delivery
	eventually(t, "a claim", func() bool {
		var err error
		if got, err = q.Claim(ctxOf(t), all); err != nil {
			t.Fatal(err)
		}
		return len(got) == 1
	})
	d := got[0]
	for _, r := range d.Recipients {
		if r.Suppressed != (r.N == 1) {
			t.Errorf("recipient %d: suppressed %v", r.N, r.Suppressed)
		}
	}
	o := outcome(d, 1, Failed)
	o.Result = Suppressed
	q.Settle(o, outcome(d, 0, Delivered))
	becomes(t, db, m.ID, "1 failed")
	if n := count(t, db, `select count(*) from history where message_id = $1 and n = 1 and result = 'suppressed'`, m.ID); n != 1 {
		t.Errorf("%d lines of the history say so", n)
	}
	if n := count(t, db, `select count(*) from recipient where message_id = $1 and notice_at is not null`, m.ID); n != 1 {
		t.Error("no notice is due")
	}
}

// BenchmarkSuppressed settles deliveries by MX without a suppression list, with an empty one, and with
// one of 100,000 other addresses.
func BenchmarkSuppressed(b *testing.B) {
	for _, entries := range []int{-1, 0, 100_000} {
		b.Run(map[int]string{-1: "none", 0: "empty", 100_000: "of others"}[entries], func(b *testing.B) {
			db := pgtest.New(b)
			cfg := calmConfig(db)
			if entries >= 0 {
				exec(b, db, `insert into suppression (user_id, address, source) select 0, 'to' || n || '@example.org', 'admin' from generate_series(1, $1::int) n`, entries)
				cfg.Suppressed = suppression.New(suppression.Config{DB: db.Pool})
				ctx, stop := context.WithCancel(context.Background())
				done := make(chan struct{})
				go func() { defer close(done); cfg.Suppressed.Run(ctx) }()
				defer func() { stop(); <-done }()
				eventually(b, "the first look", func() bool { return cfg.Suppressed.Entries() == entries })
			}
			q, backend := start(b, cfg), newPostgresCPU(b, db)
			body := content.New(make([]byte, 4000))
			self, theirs := selfCPU(), backend.total()
			b.ResetTimer()
			run(b, 64, func() {
				m := message()
				m.ID = NewID()
				d, err := taken(q.Enqueue(context.Background(), m, rcpts("bob@example.net"), body, true))
				if err != nil {
					b.Error(err)
					return
				}
				o := outcome(d, 0, Delivered)
				o.Upstream = "mx"
				q.Settle(o)
			})
			eventually(b, "all is settled", func() bool {
				q.inHand.mu.Lock()
				defer q.inHand.mu.Unlock()
				return len(q.inHand.rows) == 0
			})
			b.StopTimer()
			b.ReportMetric(float64((selfCPU()-self)/time.Microsecond)/float64(b.N), "self-µs/op")
			b.ReportMetric(float64((backend.total()-theirs)/time.Microsecond)/float64(b.N), "pg-µs/op")
		})
	}
}
