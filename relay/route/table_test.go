package route

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/relay/smtp"
)

// TestTableAge counts readings: none while the snapshot is young, one when it is
// old, however many ask.
func TestTableAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reads := 0
		table := &Table{age: 2 * time.Second, now: time.Now, load: func(context.Context) (*snapshot, error) {
			reads++
			return &snapshot{rules: []Rule{{ID: int64(reads)}}, ways: make([][]Way, 1)}, nil
		}}
		ask := func() int64 {
			d, err := table.Resolve(t.Context(), 1, smtp.Address{}, smtp.Address{})
			if err != nil {
				t.Fatal(err)
			}
			return d.Route
		}
		var group sync.WaitGroup
		for range 10 {
			group.Go(func() {
				if got := ask(); got != 1 {
					t.Errorf("route %d of reading 1", got)
				}
			})
		}
		group.Wait()
		if reads != 1 {
			t.Errorf("%d readings by ten who ask at once", reads)
		}
		time.Sleep(time.Second)
		if ask(); reads != 1 {
			t.Errorf("%d readings while the snapshot is young", reads)
		}
		time.Sleep(2 * time.Second)
		if got := ask(); got != 2 {
			t.Errorf("route %d after a change, want that of reading 2", got)
		}
	})
}

// TestTableMiss has somebody ask an old snapshot without a route while the route is being
// read: who finds none waits for the reading.
func TestTableMiss(t *testing.T) {
	t.Parallel()
	start := time.Now()
	looks := make(chan struct{}, 10) // at the clock
	table := &Table{age: time.Second, now: func() time.Time { looks <- struct{}{}; return start.Add(time.Hour) }}
	table.current.Store(&snapshot{until: start})
	table.loading.Lock() // another caller reads
	told := make(chan error, 1)
	go func() {
		_, err := table.Resolve(context.Background(), 1, smtp.Address{}, smtp.Address{})
		told <- err
	}()
	<-looks // is it old?
	select {
	case err := <-told:
		t.Fatalf("an old snapshot says: %v", err)
	case <-looks: // found nothing: is it old still?
	}
	table.current.Store(&snapshot{rules: []Rule{{ID: 1}}, ways: make([][]Way, 1)})
	table.next = start.Add(2 * time.Hour)
	table.loading.Unlock()
	if err := <-told; err != nil {
		t.Error(err)
	}
}

// TestTableTrouble has the database go away: the last snapshot stays, and is asked
// for again only now and then.
func TestTableTrouble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		gone := errors.New("database gone")
		var err error
		reads := 0
		table := &Table{age: time.Second, now: time.Now, load: func(context.Context) (*snapshot, error) {
			reads++
			if err != nil {
				return nil, err
			}
			return &snapshot{rules: []Rule{{ID: 1}}, ways: make([][]Way, 1)}, nil
		}}
		ask := func() error {
			_, err := table.Resolve(t.Context(), 1, smtp.Address{}, smtp.Address{})
			return err
		}
		err = gone
		for range 5 {
			if got := ask(); !errors.Is(got, gone) {
				t.Fatalf("without any snapshot: %v", got)
			}
		}
		if reads != 1 {
			t.Errorf("%d readings within a second of the first failure", reads)
		}
		err = nil
		time.Sleep(time.Second)
		if got := ask(); got != nil {
			t.Fatal(got)
		}
		err = gone
		time.Sleep(2 * time.Second)
		if got := ask(); got != nil {
			t.Errorf("with an old snapshot: %v", got)
		}
	})
}
