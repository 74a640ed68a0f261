package share

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
)

// TestOneHolder: one alone comes to two thirds, and a newcomer always finds room.
func TestOneHolder(t *testing.T) {
	t.Parallel()
	p := New(300, 2)
	n := int64(0)
	for p.Take(1, "greedy") {
		n++
	}
	if n != 200 {
		t.Errorf("one holder took %d of 300, want 200", n)
	}
	for i := range 40 {
		if !p.Take(1, i) {
			t.Fatalf("newcomer %d finds no room", i)
		}
	}
	if p.Take(1, "greedy") {
		t.Error("the large holder gets more although others have come")
	}
	p.Give(n, "greedy")
	if held := p.Held("greedy"); held != 0 {
		t.Errorf("%d are still held", held)
	}
}

// TestEveryHolderCounts: who is within its share by one name may be over it by another.
func TestEveryHolderCounts(t *testing.T) {
	t.Parallel()
	p := New(90, 2)
	taken := 0
	for user := range 100 {
		if p.Take(1, user, "one destination") {
			taken++
		}
	}
	if taken != 60 {
		t.Errorf("a hundred users took %d for one destination, want 60", taken)
	}
	if !p.Take(1, 0, "another destination") {
		t.Error("a user finds no room for another destination")
	}
}

// TestTurns: those that wait are served holder by holder, however many of one wait.
func TestTurns(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New(1, 2)
		p.Take(1, "before")
		served := make(chan string, 100)
		wait := func(name string) {
			go func() {
				if p.Wait(t.Context(), 1, name) == nil {
					served <- name
				}
			}()
			synctest.Wait()
		}
		for range 5 {
			wait("many")
		}
		wait("few")
		var order []string
		for last := "before"; len(order) < 6; {
			p.Give(1, last)
			last = <-served
			order = append(order, last)
		}
		if order[0] != "many" || order[1] != "few" {
			t.Errorf("served %v, want the second holder second", order)
		}
	})
}

// TestWaitingForAnother: one that waits for its destination keeps no other ask of the
// same user waiting.
func TestWaitingForAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New(6, 1)
		for range 3 {
			p.Take(1, "other", "full destination")
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Wait(ctx, 1, "user", "full destination") }()
		synctest.Wait()
		if !p.Pressed() {
			t.Error("nobody waits")
		}
		if !p.Take(1, "user", "free destination") {
			t.Error("the user gets nothing for another destination")
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
		if used, _ := p.Use(); used != 4 || p.turns.Len() != 0 {
			t.Errorf("%d used, %d holders wait; want 4 and none", used, p.turns.Len())
		}
	})
}

func TestResize(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := New(1, 1)
		p.Take(1, "a")
		got := make(chan error)
		go func() { got <- p.Wait(t.Context(), 1, "b") }()
		synctest.Wait()
		p.Resize(10)
		if err := <-got; err != nil {
			t.Error(err)
		}
		p.Resize(0)
		if p.Fits(1, "c") {
			t.Error("there is room in nothing")
		}
	})
}

// TestNobodyTakesAll plays random takers: what is counted adds up, the pool is never
// overdrawn, and one that comes new finds room.
func TestNobodyTakesAll(t *testing.T) {
	t.Parallel()
	const size = 1000
	p := New(size, 2)
	type hold struct{ amount, user, place int64 }
	var holds []hold
	for range 200_000 {
		if rand.IntN(3) > 0 {
			h := hold{1 + rand.Int64N(3), rand.Int64N(5), 100 + rand.Int64N(40)}
			if p.Take(h.amount, h.user, h.place) {
				holds = append(holds, h)
			}
		} else if len(holds) > 0 {
			i := rand.IntN(len(holds))
			p.Give(holds[i].amount, holds[i].user, holds[i].place)
			holds[i] = holds[len(holds)-1]
			holds = holds[:len(holds)-1]
		}
		if used, _ := p.Use(); used > size {
			t.Fatalf("%d of %d are held", used, size)
		}
		if !p.Fits(1, "newcomer") {
			t.Fatal("a newcomer finds no room beside five holders")
		}
	}
	for _, h := range holds {
		p.Give(h.amount, h.user, h.place)
	}
	if used, _ := p.Use(); used != 0 || len(p.held) != 0 {
		t.Errorf("%d used by %d holders at the end", used, len(p.held))
	}
}

func TestNetwork(t *testing.T) {
	t.Parallel()
	for ip, want := range map[string]string{
		"192.0.2.7": "192.0.2.7/32", "::ffff:192.0.2.7": "192.0.2.7/32", "2001:db8::1:2": "2001:db8::/64", "fe80::1%eth0": "fe80::/64",
	} {
		if got := Network(netip.MustParseAddr(ip)).String(); got != want {
			t.Errorf("%s: %s, want %s", ip, got, want)
		}
	}
	if Network(netip.Addr{}).IsValid() {
		t.Error("no address has a network")
	}
}
