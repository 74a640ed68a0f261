package queue

import (
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"postern/internal/pgtest"
	"postern/relay/queue/content"
)

// Backends are terminated at random while mail is accepted and delivered (F5): what
// was accepted ends exactly once, what was refused is not there.
func TestBackendsKilled(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	const sessions, each = 8, 40
	var accepted, refused sync.Map
	var ended atomic.Int64
	next := make(chan struct{}, 1) // a message came to its end: so a kill follows progress, however slow it is
	var killer, wg sync.WaitGroup
	killer.Go(func() {
		for range next {
			count(t, db, `select count(*) from (select pg_terminate_backend(pid) from pg_stat_activity
				where datname = current_database() and pid <> pg_backend_pid() and query ~ 'unnest|node' and query !~ 'terminate' order by random() limit 1) x`)
		}
	})
	for i := range sessions {
		wg.Go(func() {
			for n := range each {
				m := message()
				d, err := taken(q.Enqueue(ctxOf(t), m, rcpts(fmt.Sprintf("x@d%d.example", i), "y@example.net"), content.New([]byte("x")), n%4 > 0))
				select {
				case next <- struct{}{}:
				default:
				}
				if err != nil {
					refused.Store(m.ID, err)
					continue
				}
				accepted.Store(m.ID, true)
				if d != nil {
					q.Settle(outcome(d, 0, Delivered), outcome(d, 1, Delivered))
					ended.Add(2)
				}
			}
		})
	}
	wg.Wait()
	close(next)
	killer.Wait()
	eventually(t, "the waiting mail is claimed and everything ends", func() bool {
		got, err := q.Claim(ctxOf(t), all)
		if err != nil {
			return false
		}
		for _, d := range got {
			for _, r := range d.Recipients {
				q.Settle(outcome(d, r.N, Delivered))
			}
		}
		return count(t, db, `select count(*) from recipient`) == 0
	})
	accepted.Range(func(id, _ any) bool {
		if n := count(t, db, `select count(*) from history where message_id = $1 and result = 'delivered' and not fenced`, id); n != 2 {
			t.Errorf("message %v: %d deliveries are recorded, want 2", id, n)
		}
		return true
	})
	refused.Range(func(id, err any) bool {
		if n := count(t, db, `select count(*) from history where message_id = $1 and result <> 'void'`, id); n != 0 {
			t.Errorf("message %v was refused (%v) and delivered", id, err)
		}
		return true
	})
	if n := count(t, db, `select count(*) from body`); n != 0 {
		t.Errorf("%d bodies are left", n)
	}
}
