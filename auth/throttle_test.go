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

	"postern/auth/throttle"
)

// What docs/accounts.md says of guessing: failures without any delay, and the longest
// delay after them.
const (
	pairAllowance    = 5
	accountAllowance = 10
	narrowAllowance  = 20
	wideAllowance    = 60
	maxDistance      = 4 * time.Second
)

// attack makes logins from many clients concurrently, each trying again as soon as it
// has an answer, for a minute, and says how many passwords were compared.
func attack(t *testing.T, a *Authenticator, clients int, name func(i int) string, from func(i int) netip.Addr) int64 {
	t.Helper()
	before := a.hashing.done.Load()
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
	return a.hashing.done.Load() - before
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
				// then one login for each distance: 15 at four seconds, some more before.
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
// elsewhere, and gets in immediately.
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

// fails counts a failure by the public counts.
func fails(th *throttle.Throttle, o throttle.Origin, now time.Time) { th.Failed(o.Public(), now) }

// accountOf is the public count of the account.
func accountOf(o throttle.Origin) []throttle.Key { return o.Public()[2:3] }

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
		from := newLoginTry(name, "x", at(ip(i))).from
		if from.Account != "kiefer@example.com" {
			t.Errorf("%q is counted as %q", name, from.Account)
		}
		fails(a.throttle, from, time.Now())
	}
	account := accountOf(throttle.OriginOf(home, "kiefer@example.com"))
	if d := a.throttle.Distance(account); d == 0 {
		t.Error("the account has not failed")
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
		if d := a.throttle.Distance(accountOf(throttle.OriginOf(home, "alice"))); d != 0 {
			t.Errorf("the account has failed: %s between logins", d)
		}
	})
}
