package queue

import (
	"context"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
	"postern/relay/suppression"
)

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
