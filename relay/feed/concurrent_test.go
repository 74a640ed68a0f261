package feed

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/longtest"
)

// Writers whose transactions overlap, take their numbers late or early, and commit in any order or not at all,
// while readers read: each reader gets every event that was committed, once, in the same order, and no other.
func TestReadWhileOthersWrite(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	rounds, hold := 15, 100*time.Millisecond
	if longtest.Run() {
		rounds, hold = 60, 30*time.Second
	}
	var number atomic.Int32
	var mu sync.Mutex
	committed := map[string]bool{}
	var writers, readers sync.WaitGroup
	for range 6 {
		writers.Go(func() {
			for range rounds {
				tx, err := db.Pool.Begin(context.Background())
				if err != nil {
					t.Error(err)
					return
				}
				early := rand.N(2) == 0
				if early {
					exec(t, tx, `select pg_current_xact_id()`)
				}
				<-time.After(rand.N(hold))
				n := int(number.Add(3))
				exec(t, tx, insertMessage, n, n+2)
				<-time.After(rand.N(hold))
				if rand.N(5) == 0 {
					_ = tx.Rollback(context.Background())
					continue
				}
				mu.Lock()
				for i := range 3 {
					committed[fmt.Sprint(n+i)] = true
				}
				mu.Unlock()
				if err := tx.Commit(context.Background()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	over := make(chan struct{})
	read := make([][]Event, 2)
	for i := range read {
		readers.Go(func() {
			var at Cursor
			for last := false; !last; {
				select {
				case <-over:
					last = true
				default:
				}
				page, err := Read(context.Background(), db.Pool, at, Filter{})
				if err != nil {
					t.Error(err)
					return
				}
				read[i], at = append(read[i], page.Events...), page.Next
				last = last && !page.More
				<-time.After(rand.N(hold / 10))
			}
		})
	}
	writers.Wait()
	_, _ = all(t, db, Cursor{}, Filter{}) // until no transaction is open
	close(over)
	readers.Wait()
	for i, events := range read {
		seen := map[string]bool{}
		for n, e := range events {
			if seen[numberOf(e)] || !committed[numberOf(e)] || n >= len(read[0]) || e.ID != read[0][n].ID {
				t.Errorf("reader %d: event %d, of message %s, came again, was not committed, or came in another order", i, n, numberOf(e))
			}
			seen[numberOf(e)] = true
		}
		if len(seen) != len(committed) {
			t.Errorf("reader %d got %d of %d events", i, len(seen), len(committed))
		}
	}
}
