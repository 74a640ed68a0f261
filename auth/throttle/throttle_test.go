package throttle

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

var home = netip.MustParseAddr("192.0.2.1")

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ip is an address in a /24 of its own.
func ip(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, byte(i >> 8), byte(i), 1}) }

// waits is how long a login would have to wait if it were alone.
func (t *Throttle) waits(judges []Key, now time.Time) time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	return max(0, t.waitFor(judges, now))
}

// fails counts a failure by the public counts.
func (t *Throttle) fails(o Origin, now time.Time) { t.Failed(o.Public(), now) }

// A5: a good password buys no guesses at other accounts.
func TestA5SuccessDoesNotClearTheNetwork(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := New()
	for i := range 2 * narrowAllowance {
		th.fails(OriginOf(home, fmt.Sprint("user", i)), now)
		th.Succeeded(OriginOf(home, "mallory"), now)
	}
	if th.waits(OriginOf(home, "victim").Public(), now) == 0 {
		t.Error("no wait after many failures")
	}
	if wait := th.waits(OriginOf(ip(1), "victim").Public(), now); wait != 0 {
		t.Errorf("another network waits %s", wait)
	}
}

// Nor does being known allow guessing without limit; and a success, which clears the
// account's own count, changes nothing that others can tell.
func TestThrottleLimitsWhoIsKnown(t *testing.T) {
	t.Parallel()
	now := time.Unix(1e9, 0)
	th := New()
	from := OriginOf(home, "alice")
	own := []Key{from.OwnAddress()}
	for range pairAllowance + 1 {
		if wait := th.waits(own, now); wait != 0 {
			t.Fatalf("waits %s within the allowance", wait)
		}
		th.Failed(own, now)
		th.fails(from, now)
	}
	if th.waits(own, now) == 0 {
		t.Error("no wait beyond the allowance")
	}
	before := th.waits(from.Public(), now)
	th.Succeeded(from, now)
	if th.waits(own, now) != 0 {
		t.Error("a success did not clear the account's own count")
	}
	if after := th.waits(from.Public(), now); after != before || before == 0 {
		t.Errorf("M2: strangers waited %s, and %s after a success", before, after)
	}
}

func TestThrottleForgets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		th := New()
		from := OriginOf(home, "alice")
		for range 1000 {
			th.fails(from, time.Now())
		}
		began := time.Now()
		first, second := th.Join(from.Public(), from, began), th.Join(from.Public(), from, began)
		select { // equals draw lots
		case <-first.Granted():
		case <-second.Granted():
		}
		if d := time.Since(began); d != maxDistance {
			t.Errorf("the first waits %s", d)
		}
		<-first.Granted()
		<-second.Granted()
		if d := time.Since(began); d != 2*maxDistance {
			t.Errorf("the second waits %s", d)
		}
		time.Sleep(12 * halfLife)
		if p := th.Join(from.Public(), from, time.Now()); !p.IsGranted() {
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
	th := New()
	for range 1000 {
		th.fails(OriginOf(ip(1), "alice"), now)
	}
	for i := range 2 * throttleMax {
		th.fails(OriginOf(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), fmt.Sprint(i)), now)
	}
	if c, d := len(th.counts), len(th.dirty); c > throttleMax || d > c {
		t.Errorf("%d counts, %d to be shared", c, d)
	}
	if th.waits(OriginOf(ip(1), "x").Public(), now) == 0 {
		t.Error("the worst network was forgotten for the sake of single failures")
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
		got := OriginOf(netip.MustParseAddr(addr), "")
		if got.Narrow.String() != want[0] || got.Wide.String() != want[1] {
			t.Errorf("OriginOf(%s) = %+v, want %v", addr, got, want)
		}
	}
	if OriginOf(netip.Addr{}, "").Wide.IsValid() {
		t.Error("no address has a network")
	}
}
