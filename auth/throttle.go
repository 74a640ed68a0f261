package auth

import (
	"net/netip"
	"sync"
	"time"
)

// throttle slows guessing down. It counts failures of a network (/32 or /64), of
// an account, and of an account from a network; each count beyond its allowance
// puts a growing distance between attempts. It is one process's view.
//
// A success clears only the count of that account from that network: who has one
// good password must not be able to buy guesses at others. An account that lately
// succeeded from a network is judged by that pair alone, so that nobody can lock a
// user out by guessing from elsewhere.
type throttle struct {
	mu     sync.Mutex
	counts map[source]*count
	known  *cache[source, struct{}]
}

// source is a network, an account, or with both set an account from a network.
type source struct {
	network netip.Prefix
	account string
}

type count struct {
	failures int
	since    time.Time // of the last halving
	next     time.Time // when the next attempt may begin
}

const (
	throttleMax   = 1 << 16 // counts held
	knownFor      = 30 * 24 * time.Hour
	halfLife      = 10 * time.Minute
	firstDistance = 250 * time.Millisecond
	maxDistance   = 4 * time.Second
	maxWait       = 5 * time.Second // an attempt that had to wait longer is refused
)

// Failures without any delay.
const (
	pairAllowance    = 5
	accountAllowance = 10
	networkAllowance = 20
)

func newThrottle() *throttle {
	return &throttle{
		counts: make(map[source]*count),
		known:  newCache[source, struct{}](throttleMax, knownFor),
	}
}

// networkOf is who an address stands for: itself, or its /64.
func networkOf(peer netip.Addr) netip.Prefix {
	peer = peer.Unmap().WithZone("")
	bits := 32
	if peer.Is6() {
		bits = 64
	}
	p, _ := peer.Prefix(bits) // the zero Prefix for an invalid address
	return p
}

// reserve takes the next place for an attempt and says how long to wait for it;
// ok is false when that is too long, and then no place is taken.
func (t *throttle) reserve(network netip.Prefix, account string, now time.Time) (wait time.Duration, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	judges := []source{{network: network}, {account: account}}
	pair := source{network, account}
	if _, _, known := t.known.get(pair, now); known {
		judges = []source{pair}
	}
	for _, s := range judges {
		if c := t.counts[s]; c != nil {
			wait = max(wait, c.next.Sub(now))
		}
	}
	if wait > maxWait {
		return 0, false
	}
	for _, s := range judges {
		if c := t.counts[s]; c != nil {
			c.decay(now)
			if d := s.distance(c.failures); d > 0 {
				c.next = now.Add(wait + d)
			}
		}
	}
	return wait, true
}

// failed counts a failure; account is "" for a name that can be nobody's.
func (t *throttle) failed(network netip.Prefix, account string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	blamed := []source{{network: network}}
	if account != "" {
		blamed = append(blamed, source{account: account}, source{network, account})
	}
	for _, s := range blamed {
		c := t.counts[s]
		if c == nil {
			if len(t.counts) >= throttleMax {
				t.evict(now)
			}
			c = &count{since: now}
			t.counts[s] = c
		}
		c.decay(now)
		c.failures++
		if next := now.Add(s.distance(c.failures)); next.After(c.next) {
			c.next = next
		}
	}
}

// succeeded remembers that the account is at home in the network.
func (t *throttle) succeeded(network netip.Prefix, account string, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	pair := source{network, account}
	delete(t.counts, pair)
	t.known.put(pair, struct{}{}, now)
}

// evict makes room: the least of a few counts, in the map's random order.
func (t *throttle) evict(now time.Time) {
	var victim source
	least, n := 0, 0
	for s, c := range t.counts {
		c.decay(now)
		if n == 0 || c.failures < least {
			victim, least = s, c.failures
		}
		if n++; n == 8 {
			break
		}
	}
	delete(t.counts, victim)
}

// decay halves the failures for each half-life that went by.
func (c *count) decay(now time.Time) {
	for ; c.failures > 0 && now.Sub(c.since) >= halfLife; c.since = c.since.Add(halfLife) {
		c.failures /= 2
	}
	if c.failures == 0 {
		c.since = now
	}
}

// distance is the time between attempts after so many failures.
func (s source) distance(failures int) time.Duration {
	allowance := pairAllowance
	switch {
	case s.account == "":
		allowance = networkAllowance
	case !s.network.IsValid():
		allowance = accountAllowance
	}
	over := failures - allowance
	if over <= 0 {
		return 0
	}
	return min(firstDistance<<min(over-1, 10), maxDistance)
}
