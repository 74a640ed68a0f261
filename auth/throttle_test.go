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
				_, err := a.Verify(t.Context(), name(i), fmt.Sprint("guess", i), at(from(client)))
				if errors.Is(err, ErrBusy) {
					time.Sleep(100 * time.Millisecond) // a session has limits of its own
				}
			}
		})
	}
	all.Wait()
	return a.gate.done.Load() - before
}

// ip is an address in a /24 of its own.
func ip(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 1}) }

// A5, the part of one process: however a guesser spreads, few guesses are compared.
func TestA5GuessingIsSlow(t *testing.T) {
	t.Parallel()
	alice := func(int) string { return "alice" }
	spray := func(i int) string { return fmt.Sprint("user", i) }
	one := func(int) netip.Addr { return ip(1) }
	in64 := func(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("2001:db8::%x", i+1)) }
	in24 := func(i int) netip.Addr { return netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}) }
	tests := []struct {
		name  string
		who   func(int) string
		from  func(int) netip.Addr
		limit int64
	}{
		{"one address, one account", alice, one, pairAllowance},
		{"many addresses, one account", alice, ip, accountAllowance},
		{"one address, many accounts", spray, one, narrowAllowance},
		{"one /64, many accounts", spray, in64, narrowAllowance},
		{"one /24, many accounts", spray, in24, wideAllowance},
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
		if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != nil {
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
			if _, err := a.Verify(t.Context(), "alice", "pw", at(home)); err != nil {
				t.Errorf("err = %v", err)
			}
			if d := time.Since(start); d >= time.Second {
				t.Errorf("took %s", d)
			}
		}
		<-done
	})
}

// waits is how long an attempt would have to wait if it were alone.
func (t *throttle) waits(judges []key, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.waitFor(judges, now))
}

// fails counts a failure by the public counts.
func (t *throttle) fails(o origin, now time.Time) { t.failed(o.keys(), now) }

// A5: a good password buys no guesses at other accounts.
func TestA5SuccessDoesNotClearTheNetwork(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	for i := range 2 * narrowAllowance {
		th.fails(originOf(home, fmt.Sprint("user", i)), now)
		th.succeeded(originOf(home, "mallory"), now)
	}
	if th.waits(originOf(home, "victim").keys(), now) == 0 {
		t.Error("no wait after many failures")
	}
	if wait := th.waits(originOf(ip(1), "victim").keys(), now); wait != 0 {
		t.Errorf("another network waits %s", wait)
	}
}

// Nor does being known allow guessing without limit; and a success, which clears the
// account's own count, changes nothing that others can tell.
func TestThrottleLimitsWhoIsKnown(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	from := originOf(home, "alice")
	own := []key{from.own(ownAddress)}
	for range pairAllowance + 1 {
		if wait := th.waits(own, now); wait != 0 {
			t.Fatalf("waits %s within the allowance", wait)
		}
		th.failed(own, now)
		th.fails(from, now)
	}
	if th.waits(own, now) == 0 {
		t.Error("no wait beyond the allowance")
	}
	before := th.waits(from.keys(), now)
	th.succeeded(from, now)
	if th.waits(own, now) != 0 {
		t.Error("a success did not clear the account's own count")
	}
	if after := th.waits(from.keys(), now); after != before || before == 0 {
		t.Errorf("M2: strangers waited %s, and %s after a success", before, after)
	}
}

func TestThrottleForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := newThrottle()
		from := originOf(home, "alice")
		for range 1000 {
			th.fails(from, time.Now())
		}
		began := time.Now()
		first, second := th.join(from.keys(), from, began), th.join(from.keys(), from, began)
		select { // equals draw lots
		case <-first.granted():
		case <-second.granted():
		}
		if d := time.Since(began); d != maxDistance {
			t.Errorf("the first waits %s", d)
		}
		<-first.granted()
		<-second.granted()
		if d := time.Since(began); d != 2*maxDistance {
			t.Errorf("the second waits %s", d)
		}
		time.Sleep(12 * halfLife)
		if p := th.join(from.keys(), from, time.Now()); !p.isGranted() {
			t.Error("waits after two hours")
		}
		if len(th.line) != 0 {
			t.Errorf("%d stand in line", len(th.line))
		}
	})
}

func TestThrottleIsBounded(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := newThrottle()
	for range 1000 {
		th.fails(originOf(ip(1), "alice"), now)
	}
	for i := range 2 * throttleMax {
		th.fails(originOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), fmt.Sprint(i)), now)
	}
	if c, d := len(th.counts), len(th.dirty); c > throttleMax || d > c {
		t.Errorf("%d counts, %d to be shared", c, d)
	}
	if th.waits(originOf(ip(1), "x").keys(), now) == 0 {
		t.Error("the worst network was forgotten for the sake of single failures")
	}
}

// A26: all spellings of a name are one bucket.
func TestA26OneCountForAllSpellings(t *testing.T) {
	t.Parallel()
	a := newAuthenticator(fakeUsers{}, cheap, Config{})
	spellings := []string{"kiefer@example.com", "KIEFER@Example.COM", "\u212aiefer@example.com.", "\uff4biefer@example.com", "kiefer@EXAMPLE.com."}
	for i := range 2 * accountAllowance {
		name := spellings[i%len(spellings)]
		if canonical, err := CanonicalName(name); err != nil || canonical != "kiefer@example.com" {
			if err == nil {
				t.Fatalf("%q is %q", name, canonical)
			}
			continue // nobody's
		}
		a.throttle.fails(newAttempt(name, "x", at(ip(i))).from, time.Now())
	}
	accounts := 0
	for k := range a.throttle.counts {
		if k[0] == byAccount {
			accounts++
		}
	}
	if accounts != 1 || a.throttle.counts[keyOf(byAccount, netip.Prefix{}, "kiefer@example.com")].failures < accountAllowance {
		t.Errorf("%d accounts are counted", accounts)
	}
}

func TestOriginOf(t *testing.T) {
	t.Parallel()
	for addr, want := range map[string][2]string{
		"192.0.2.1":                 {"192.0.2.1/32", "192.0.2.0/24"},
		"::ffff:192.0.2.1":          {"192.0.2.1/32", "192.0.2.0/24"},
		"2001:db8:1:2:3:4:5:6":      {"2001:db8:1:2::/64", "2001:db8:1::/48"},
		"fe80::1%eth0":              {"fe80::/64", "fe80::/48"},
		"2001:db8:1:2:ffff:ffff::1": {"2001:db8:1:2::/64", "2001:db8:1::/48"},
	} {
		got := originOf(netip.MustParseAddr(addr), "")
		if got.narrow.String() != want[0] || got.wide.String() != want[1] {
			t.Errorf("originOf(%s) = %+v, want %v", addr, got, want)
		}
	}
	if originOf(netip.Addr{}, "").wide.IsValid() {
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

// A5: what can be nobody's password counts against the networks, waits like others,
// and against no account.
func TestA5EmptyPassword(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a := newAuthenticator(fakeUsers{"alice": withPassword(1, "pw")}, defaultCost, Config{})
		var all sync.WaitGroup
		var busy atomic.Int64
		for range 500 {
			all.Go(func() {
				if _, err := a.Verify(t.Context(), "alice", "", at(home)); errors.Is(err, ErrBusy) {
					busy.Add(1)
				}
			})
		}
		all.Wait()
		if n := busy.Load(); n < 300 {
			t.Errorf("only %d of 500 were held back", n)
		}
		a.throttle.mu.Lock()
		defer a.throttle.mu.Unlock()
		if c := a.throttle.counts[keyOf(byAccount, netip.Prefix{}, "alice")]; c != nil {
			t.Errorf("the account has %d failures", c.failures)
		}
	})
}
