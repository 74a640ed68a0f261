package auth

import (
	"bytes"
	"crypto/sha256"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// throttle slows guessing down. It counts failures of a client's network, narrow (/32
// or /64) and wide (/24 or /48), of an account, and of an account from a wide network;
// each count beyond its allowance puts a growing distance between the attempts that it
// judges. These counts are public: nothing that only a right password brings about
// changes them, so that nobody learns from them which accounts exist. Two more are the
// account's own, for what is judged because the account is known there: see contested.
//
// It judges by this process's memory, which holds what all nodes counted as of half a
// second ago: take and merge are the two sides of that, see sharing. Attempts that have
// to wait stand in line, see place.
//
// A success clears only the account's own count at that address: the owner of
// one good password must not be able to buy guesses at others.
type throttle struct {
	mu     sync.Mutex
	counts map[key]*count
	dirty  map[key]struct{} // counts that hold what was not shared yet
	line   []*place         // that wait, in the order in which they are served
	timer  *time.Timer      // of the next service; nil: never needed yet
	due    time.Time        // when it fires
}

// key names what is counted: a class and a hash, for names are typed by strangers and
// as long as they like.
type key [16]byte

// The classes, which are the first octet of a key.
const (
	byNarrow byte = iota + 1
	byWide
	byAccount
	byPair
	ownAddress // of an account, from a narrow network that it is known from
	ownNetwork // and from a wide one
)

// origin is where an attempt comes from, and as whom: what its failure is blamed on.
type origin struct {
	narrow, wide netip.Prefix
	account      string // canonical; "" for a name that can be nobody's
}

func originOf(peer netip.Addr, account string) origin {
	peer = peer.Unmap().WithZone("")
	narrow, wide := 32, 24
	if peer.Is6() {
		narrow, wide = 64, 48
	}
	o := origin{account: account}
	o.narrow, _ = peer.Prefix(narrow) // zero for an invalid address
	o.wide, _ = peer.Prefix(wide)
	return o
}

func keyOf(class byte, network netip.Prefix, account string) key {
	text := append([]byte{class}, network.String()...)
	sum := sha256.Sum256(append(append(text, 0), account...))
	k := key(sum[:16])
	k[0] = class
	return k
}

// pair is the account from the wide network.
func (o origin) pair() key { return keyOf(byPair, o.wide, o.account) }

// own names the account's own counts.
func (o origin) own(class byte) key {
	if class == ownAddress {
		return keyOf(class, o.narrow, o.account)
	}
	return keyOf(class, o.wide, o.account)
}

// keys are the public counts of an attempt.
func (o origin) keys() []key {
	keys := []key{keyOf(byNarrow, o.narrow, ""), keyOf(byWide, o.wide, "")}
	if o.account != "" {
		keys = append(keys, keyOf(byAccount, netip.Prefix{}, o.account), o.pair())
	}
	return keys
}

type count struct {
	failures int       // of all nodes, as far as is known, ours included
	unshared int       // of them, those that only this process knows
	cleared  bool      // and before them, that it began anew
	since    time.Time // of the last halving
	next     time.Time // when the next attempt may begin
}

const (
	throttleMax   = 1 << 16 // counts held
	halfLife      = 10 * time.Minute
	firstDistance = 250 * time.Millisecond
	maxDistance   = 4 * time.Second
	maxWait       = 5 * time.Second // an attempt that had to wait longer is refused, see contested
)

// Failures without any delay.
const (
	pairAllowance    = 5
	accountAllowance = 10
	narrowAllowance  = 20
	wideAllowance    = 60
)

func newThrottle() *throttle {
	return &throttle{counts: make(map[key]*count), dirty: make(map[key]struct{})}
}

// waitFor is how long none of the counts lets an attempt through.
func (t *throttle) waitFor(judges []key, now time.Time) (wait time.Duration) {
	for _, k := range judges {
		if c := t.counts[k]; c != nil {
			wait = max(wait, c.next.Sub(now))
		}
	}
	return wait
}

// pass lets an attempt through: the next has to keep its distance.
func (t *throttle) pass(judges []key, now time.Time) {
	for _, k := range judges {
		if c := t.counts[k]; c != nil {
			c.decay(now)
			c.delay(k, now)
		}
	}
}

// failed counts a failure.
func (t *throttle) failed(judges []key, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range judges {
		c := t.counts[k]
		if c == nil {
			c = t.add(k, now)
		}
		c.decay(now)
		c.failures++
		c.unshared++
		c.delay(k, now)
		t.dirty[k] = struct{}{}
	}
}

// succeeded clears what was failed as the account from its own address.
func (t *throttle) succeeded(o origin, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := o.own(ownAddress)
	if c := t.counts[k]; c != nil && c.failures > 0 {
		*c = count{since: now, cleared: true}
		t.dirty[k] = struct{}{}
	}
}

// report is what one process has to tell of a count.
type report struct {
	key      key
	cleared  bool // before the failures
	failures int
}

// take hands over at most n of the counts that changed, in the order of their keys.
func (t *throttle) take(n int) []report {
	t.mu.Lock()
	defer t.mu.Unlock()
	var reports []report
	for k := range t.dirty {
		if len(reports) == n {
			break
		}
		c := t.counts[k]
		reports = append(reports, report{k, c.cleared, c.unshared})
		c.unshared, c.cleared = 0, false
		delete(t.dirty, k)
	}
	slices.SortFunc(reports, func(a, b report) int { return bytes.Compare(a.key[:], b.key[:]) })
	return reports
}

// giveBack takes reports again that could not be handed on.
func (t *throttle) giveBack(reports []report) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, r := range reports {
		c := t.counts[r.key]
		if c == nil {
			continue // it made room for others
		}
		if !c.cleared { // what came before a later success is of no account
			c.unshared, c.cleared = c.unshared+r.failures, r.cleared
		}
		t.dirty[r.key] = struct{}{}
	}
}

// total is a count as all nodes have it together.
type total struct {
	key      key
	failures int
	age      time.Duration // since the last halving
}

// merge takes totals over. A failure that is news here delays attempts as one of ours.
func (t *throttle) merge(totals []total, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, row := range totals {
		c := t.counts[row.key]
		if c == nil && row.failures == 0 {
			continue
		}
		if c == nil {
			c = t.add(row.key, now)
		}
		if c.cleared {
			continue // ours is later
		}
		c.decay(now)
		before := c.failures
		shared := count{failures: row.failures, since: now.Add(-row.age)}
		shared.decay(now)
		c.failures, c.since = shared.failures+c.unshared, shared.since
		switch {
		case c.failures > before:
			c.delay(row.key, now)
		case row.key.distance(c.failures) == 0:
			c.next = time.Time{}
		}
	}
	t.serve(now)
}

func (t *throttle) add(k key, now time.Time) *count {
	if len(t.counts) >= throttleMax {
		t.evict(now)
	}
	c := &count{since: now}
	t.counts[k] = c
	return c
}

// evict makes room: the least of a few counts, in the map's random order.
func (t *throttle) evict(now time.Time) {
	var victim key
	least, n := 0, 0
	for k, c := range t.counts {
		c.decay(now)
		if n == 0 || c.failures < least {
			victim, least = k, c.failures
		}
		if n++; n == 8 {
			break
		}
	}
	delete(t.counts, victim)
	delete(t.dirty, victim)
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

// delay puts the next attempt off.
func (c *count) delay(k key, now time.Time) {
	if next := now.Add(k.distance(c.failures)); next.After(c.next) {
		c.next = next
	}
}

// distance is the time between attempts after so many failures.
func (k key) distance(failures int) time.Duration {
	allowance := pairAllowance
	switch k[0] {
	case byNarrow:
		allowance = narrowAllowance
	case byWide:
		allowance = wideAllowance
	case byAccount:
		allowance = accountAllowance
	}
	over := failures - allowance
	if over <= 0 {
		return 0
	}
	return min(firstDistance<<min(over-1, 10), maxDistance)
}
