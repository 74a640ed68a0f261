package queue

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Sessions that are ready to submit come into the group, and so does one that hears of its
// client while all processors are busy. Not parallel: it changes how many processors there are.
func TestCommitterYields(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, tc := range []struct {
		name     string
		sessions int
		before   func() // they submit
	}{
		{"ready", 3, func() {}},
		{"behind other work", 1, func() {
			for began := time.Now(); time.Since(began) < busyTime; { // a signature, as it were
			}
			time.Sleep(busyWait / 8)
		}},
	} {
		n := 0
		for try := 0; n < tc.sessions && try < 20; try++ { // the scheduler may choose the committer first
			c := &committer{mail: make(chan *submittal, tc.sessions), limit: groupMessages}
			for range tc.sessions {
				go func() {
					tc.before()
					c.mail <- &submittal{}
				}()
			}
			c.yield()
			n = len(c.mail)
		}
		if n < tc.sessions {
			t.Errorf("%s: %d of %d messages are in the group", tc.name, n, tc.sessions)
		}
	}
}

// A group of outcomes waits for more of them, until there are enough or it has waited long enough.
func TestSettlePauses(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name  string
		every time.Duration // between two outcomes
		waits time.Duration
		more  int // outcomes meanwhile
	}{
		{"none", time.Hour, 20 * time.Millisecond, 0},
		{"few", 3 * time.Millisecond, 20 * time.Millisecond, 6},
		{"enough", 300 * time.Microsecond, 10 * time.Millisecond, 33},
		{"many", 70 * time.Microsecond, 5 * time.Millisecond, 71},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := &settles{in: make(chan ending, settleQueue)}
				var sender sync.WaitGroup
				defer sender.Wait()
				sender.Go(func() {
					for range 200 {
						time.Sleep(tc.every)
						s.in <- ending{}
					}
				})
				began := time.Now()
				s.pause()
				if waits, more := time.Since(began), len(s.in); waits != tc.waits || more != tc.more {
					t.Errorf("waits %v for %d more, want %v and %d", waits, more, tc.waits, tc.more)
				}
			})
		})
	}
}
