package route

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"postern/relay/smtp"
	"postern/relay/upstream"
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
			t.Errorf("%d readings by ten concurrent callers", reads)
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

// TestTableReading: the age counts from the begin of a reading, which sees no later change; when
// that is slow there is a pause behind it.
func TestTableReading(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		reads, takes := 0, 500*time.Millisecond
		table := &Table{age: 2 * time.Second, now: time.Now, load: func(context.Context) (*snapshot, error) {
			reads++
			time.Sleep(takes)
			return &snapshot{rules: []Rule{{}}, ways: make([][]Way, 1)}, nil
		}}
		ask := func(after time.Duration, want int) {
			t.Helper()
			time.Sleep(after)
			if _, err := table.Resolve(t.Context(), 1, smtp.Address{}, smtp.Address{}); err != nil || reads != want {
				t.Errorf("%d readings, %v; want %d", reads, err, want)
			}
		}
		ask(0, 1)
		ask(1499*time.Millisecond, 1)
		takes = 2500 * time.Millisecond
		ask(time.Millisecond, 2) // two seconds after the first began
		ask(0, 2)
		ask(999*time.Millisecond, 2)
		ask(time.Millisecond, 3)
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

// TestMatch has rules and what of a message differs from them.
func TestMatch(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		rule     Rule
		user     int64
		from, to string
		want     string
	}{
		{Rule{}, 0, "", "b@example.net", ""},
		{Rule{UserID: 3}, 3, "", "b@example.net", ""},
		{Rule{UserID: 3}, 4, "a@example.com", "b@example.net", "user"},
		{Rule{UserID: 3}, 0, "a@example.com", "b@example.net", "user"},
		{Rule{SenderDomain: "example.com"}, 3, "A@EXAMPLE.com", "b@example.net", ""},
		{Rule{SenderDomain: "example.com"}, 3, "a@sub.example.com", "b@example.net", "sender domain"},
		{Rule{SenderDomain: "example.com"}, 3, "", "b@example.net", "sender domain"},
		{Rule{SenderDomain: "*.example.com"}, 3, "a@sub.example.com", "b@example.net", ""},
		{Rule{SenderDomain: "*.example.com"}, 3, "a@x.sub.example.com", "b@example.net", ""},
		{Rule{SenderDomain: "*.example.com"}, 3, "a@example.com", "b@example.net", "sender domain"},
		{Rule{SenderDomain: "*.example.com"}, 3, "a@notexample.com", "b@example.net", "sender domain"},
		{Rule{RecipientDomain: "xn--bcher-kva.test"}, 3, "a@example.com", "b@bücher.test", ""},
		{Rule{RecipientDomain: "*.xn--bcher-kva.test"}, 3, "a@example.com", "b@a.Bücher.test", ""},
		{Rule{RecipientDomain: "example.net"}, 3, "a@example.com", "b@example.org", "recipient domain"},
		{Rule{RecipientDomain: "[192.0.2.1]"}, 3, "a@example.com", "b@[192.0.2.1]", ""},
		{Rule{UserID: 3, SenderDomain: "example.com", RecipientDomain: "example.net"}, 3, "a@example.com", "b@example.net", ""},
		{Rule{UserID: 3, SenderDomain: "example.com", RecipientDomain: "example.net"}, 3, "a@example.com", "b@example.org", "recipient domain"},
		{Rule{UserID: 3, SenderDomain: "example.com", RecipientDomain: "example.net"}, 3, "a@example.org", "b@example.net", "sender domain"},
	} {
		var from smtp.Address
		if test.from != "" {
			from = parse(t, test.from)
		}
		if got := test.rule.Mismatch(test.user, from, parse(t, test.to)); got != test.want {
			t.Errorf("%v, user %d from %s to %s: %q, want %q", test.rule, test.user, test.from, test.to, got, test.want)
		}
	}
}

// TestHidden has a rule behind another: which of them takes all mail of the other.
func TestHidden(t *testing.T) {
	t.Parallel()
	const a, b, below, deep = "a.test", "b.test", "*.a.test", "*.b.a.test"
	for _, test := range []struct {
		first, second Rule
		want          bool
	}{
		{Rule{SenderDomain: a}, Rule{SenderDomain: a, UserID: 3}, true},
		{Rule{SenderDomain: a, UserID: 3}, Rule{SenderDomain: a}, false},
		{Rule{UserID: 3}, Rule{UserID: 3, RecipientDomain: b}, true},
		{Rule{UserID: 3}, Rule{UserID: 4, RecipientDomain: b}, false},
		{Rule{SenderDomain: below}, Rule{SenderDomain: deep}, true},
		{Rule{SenderDomain: deep}, Rule{SenderDomain: below}, false},
		{Rule{SenderDomain: below}, Rule{SenderDomain: "b.a.test", RecipientDomain: a}, true},
		{Rule{SenderDomain: below}, Rule{SenderDomain: a}, false},
		{Rule{RecipientDomain: a}, Rule{RecipientDomain: below}, false},
		{Rule{RecipientDomain: a}, Rule{RecipientDomain: b}, false},
	} {
		list := []Rule{{ID: 1, UserID: 9, SenderDomain: b}, test.first, test.second, {}}
		list[1].ID = 2
		for i := range list {
			by := HiddenBy(list, i)
			if want := test.want && i == 2; (by != nil) != want || by != nil && by.ID != 2 {
				t.Errorf("%v, then %v: rule at %d is behind %v", test.first, test.second, i, by)
			}
		}
	}
}

// TestPermitted leaves out the ways that may not send as a sender, for that sender alone.
func TestPermitted(t *testing.T) {
	t.Parallel()
	some, err := upstream.ParseSenders([]string{"Example.COM", " *@*.example.org", "news@example.net", ""})
	if err != nil {
		t.Fatal(err)
	}
	if want := "*@example.com *@*.example.org news@example.net"; some != want {
		t.Fatalf("patterns %q, want %q", some, want)
	}
	paused := &upstream.PausedError{Upstream: "paused"}
	ways := []Way{
		{Name: "some", Upstream: &upstream.Account{Name: "some", Senders: some}},
		{Name: "paused", Upstream: &upstream.Account{Name: "paused"}, Err: paused},
		{Name: "all", Upstream: &upstream.Account{Name: "all"}},
		{Name: MX},
	}
	s := &snapshot{rules: []Rule{{ID: 1}}, ways: [][]Way{ways}}
	for _, test := range []struct{ from, first string }{
		{"a@example.com", "some"}, {"A@EXAMPLE.com", "some"}, {"a@b.example.org", "some"}, {"NEWS@example.net", "some"}, {"", "some"},
		{"a@example.org", "all"}, {"a@example.net", "all"}, {"a@b.example.com", "all"},
	} {
		var from smtp.Address
		if test.from != "" {
			from = parse(t, test.from)
		}
		d, err := s.resolve(1, from, parse(t, "b@example.net"))
		if err != nil {
			t.Fatal(err)
		}
		if first, err := d.First(); err != nil || first.Name != test.first || len(d.Ways) != 4 {
			t.Errorf("%q: %v, %v, want %s", test.from, first, err, test.first)
		}
		if refused := d.Ways[0].Err; (refused != nil) != (test.first == "all") || refused != nil && refused.Error() != "upstream some may not send as "+test.from {
			t.Errorf("%q: %v", test.from, refused)
		}
	}
	if ways[0].Err != nil {
		t.Error("the ways that all share are changed")
	}
	// Mail that waits for the end of a pause would be sent then.
	s.ways[0] = ways[:2]
	d, _ := s.resolve(1, parse(t, "a@example.org"), parse(t, "b@example.net"))
	if _, err := d.First(); err != paused {
		t.Errorf("%v, want that it is paused", err)
	}
	s.ways[0] = ways[:1]
	d, _ = s.resolve(1, parse(t, "a@example.org"), parse(t, "b@example.net"))
	if _, err := d.First(); !upstream.IsSender(err) {
		t.Errorf("%v, want that it may not", err)
	}
}
