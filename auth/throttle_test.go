package auth

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// attack makes attempts from many clients at once, each trying again as soon as it
// has an answer, for a minute, and says how many passwords were compared.
func attack(t *testing.T, a *Authenticator, clients int, name func(i int) string, from func(i int) netip.Addr) int64 {
	t.Helper()
	before := a.gate.done.Load()
	end := time.Now().Add(time.Minute)
	var n atomic.Int64
	var all sync.WaitGroup
	for client := range clients {
		all.Go(func() {
			for time.Now().Before(end) {
				i := int(n.Add(1))
				_, err := a.Verify(t.Context(), name(i), fmt.Sprint("guess", i), from(client))
				if errors.Is(err, ErrBusy) {
					time.Sleep(100 * time.Millisecond) // a session has limits of its own
				}
			}
		})
	}
	all.Wait()
	return a.gate.done.Load() - before
}

func ip(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}) }

// A5, the part of one process: however a guesser spreads, few guesses are compared.
func TestA5GuessingIsSlow(t *testing.T) {
	t.Parallel()
	alice := func(int) string { return "alice" }
	spray := func(i int) string { return fmt.Sprint("user", i) }
	one := func(int) netip.Addr { return ip(1) }
	in64 := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)) }
	tests := []struct {
		name  string
		who   func(int) string
		from  func(int) netip.Addr
		limit int64
	}{
		{"one address, one account", alice, one, accountAllowance},
		{"many addresses, one account", alice, ip, accountAllowance},
		{"one address, many accounts", spray, one, networkAllowance},
		{"one /64, many accounts", spray, in64, networkAllowance},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{})
				got := attack(t, a, 40, tt.who, tt.from)
				// Clients that were let through before the first failure was counted, and
				// then one attempt for each distance: 15 at four seconds, some more before.
				if limit := tt.limit + 40 + 15 + 6; got > limit {
					t.Errorf("%d guesses compared in a minute, limit %d", got, limit)
				}
				if got < tt.limit {
					t.Errorf("%d guesses compared: the allowance is %d", got, tt.limit)
				}
			})
		})
	}
}

// A5: a user who is at home in a network is not locked out by guesses from
// elsewhere, and gets in at once.
func TestA5TheUserGetsInDuringAnAttack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, cheap, Config{})
		if _, err := a.Verify(t.Context(), "alice", "pw", home); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // nothing is cached any more
		done := make(chan struct{})
		go func() {
			attack(t, a, 40, func(int) string { return "alice" }, ip)
			close(done)
		}()
		for range 10 {
			time.Sleep(5 * time.Second)
			start := time.Now()
			if _, err := a.Verify(t.Context(), "alice", "pw", home); err != nil {
				t.Errorf("err = %v", err)
			}
			if d := time.Since(start); d >= time.Second {
				t.Errorf("took %s", d)
			}
		}
		<-done
	})
}

// A5: a good password buys no guesses at other accounts.
func TestA5SuccessDoesNotClearTheNetwork(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	network := networkOf(home)
	for i := range 2 * networkAllowance {
		th.failed(network, fmt.Sprint("user", i), now)
		th.succeeded(network, "mallory", now)
	}
	if wait, _ := th.reserve(network, "victim", now); wait == 0 {
		t.Error("no wait after many failures")
	}
	if wait, _ := th.reserve(networkOf(ip(1)), "victim", now); wait != 0 {
		t.Errorf("another network waits %s", wait)
	}
}

// Nor does being at home allow guessing without limit.
func TestThrottleLimitsAKnownPair(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	network := networkOf(home)
	th.succeeded(network, "alice", now)
	for range pairAllowance + 1 {
		if wait, ok := th.reserve(network, "alice", now); wait != 0 || !ok {
			t.Fatalf("waits %s within the allowance", wait)
		}
		th.failed(network, "alice", now)
	}
	if wait, _ := th.reserve(network, "alice", now); wait == 0 {
		t.Error("no wait beyond the allowance")
	}
}

func TestThrottleForgets(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	network := networkOf(home)
	for range 1000 {
		th.failed(network, "alice", now)
	}
	if wait, ok := th.reserve(network, "alice", now); wait != maxDistance || !ok {
		t.Errorf("wait = %s, %v", wait, ok)
	}
	if _, ok := th.reserve(network, "alice", now); ok {
		t.Error("a place beyond the longest wait was given")
	}
	now = now.Add(12 * halfLife)
	if wait, ok := th.reserve(network, "alice", now); wait != 0 || !ok {
		t.Errorf("after two hours: wait = %s, %v", wait, ok)
	}
}

func TestThrottleIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	worst := networkOf(ip(1))
	for range 1000 {
		th.failed(worst, "alice", now)
	}
	for i := range 2 * throttleMax {
		th.failed(networkOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})), fmt.Sprint(i), now)
	}
	if n := len(th.counts); n > throttleMax {
		t.Errorf("%d counts", n)
	}
	if wait, _ := th.reserve(worst, "x", now); wait == 0 {
		t.Error("the worst network was forgotten for the sake of single failures")
	}
}

func TestNetworkOf(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string]string{
		"192.0.2.1":                 "192.0.2.1/32",
		"::ffff:192.0.2.1":          "192.0.2.1/32",
		"2001:db8:1:2:3:4:5:6":      "2001:db8:1:2::/64",
		"fe80::1%eth0":              "fe80::/64",
		"2001:db8:1:2:ffff:ffff::1": "2001:db8:1:2::/64",
	} {
		if got := networkOf(netip.MustParseAddr(addr)).String(); got != want {
			t.Errorf("networkOf(%s) = %s, want %s", addr, got, want)
		}
	}
	if networkOf(netip.Addr{}).IsValid() {
		t.Error("no address has a network")
	}
}

func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	c := newCache[int, int](10, time.Minute)
	for i := range 1000 {
		c.put(i, i, now)
		if v, _, ok := c.get(i, now); !ok || v != i {
			t.Fatalf("entry %d is not there", i)
		}
	}
	if n := len(c.entries); n != 10 {
		t.Errorf("%d entries", n)
	}
	if _, _, ok := c.get(999, now.Add(time.Minute)); ok {
		t.Error("an entry outlived its time")
	}
}
