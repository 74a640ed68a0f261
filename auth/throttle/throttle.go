// Package throttle answers "how often may you guess?", across all nodes: it counts failed
// logins, decides when the next login is judged, and serves those that have to wait.
//
// It slows guessing down and never locks anybody out. It knows neither passwords nor
// users, only origins: an address and a name as typed. While the database is away, only the
// counts of the other nodes are missing.
package throttle

import (
	"bytes"
	"crypto/sha256"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Throttle slows guessing down. It counts failures of a client's network, narrow (/32
// or /64) and wide (/24 or /48), of an account, and of an account from a wide network;
// each count beyond its allowance puts a growing distance between the logins that it
// judges. These counts are public: nothing that only a right password brings about
// changes them, so that nobody learns from them which accounts exist. Two more are the
// account's own, for what is judged because the account is known there.
//
// It judges by this process's memory, which holds what all nodes counted as of half a
// second ago: take and merge are the two sides of that, see Share. Logins that have
// to wait stand in line, see Place.
//
// A success clears only the account's own count at that address: the owner of
// one good password must not be able to buy guesses at others.
type Throttle struct {
	mu     sync.Mutex
	counts map[Key]*count
	dirty  map[Key]struct{} // counts that hold what was not shared yet
	line   []*Place         // that wait, in the order in which they are served
	timer  *time.Timer      // of the next service; nil: never needed yet
	due    time.Time        // when it fires

	pulled, expired time.Time // when Share last did so; zero: never
}

// Key names what is counted: a class and a hash, for names are typed by strangers and
// as long as they like.
type Key [16]byte

// The classes, which are the first octet of a key.
const (
	byNarrow byte = iota + 1
	byWide
	byAccount
	byPair
	ownAddress // of an account, from a narrow network that it is known from
	ownNetwork // and from a wide one
)

// Origin is the address and the name of a login, to which its failure is attributed.
type Origin struct {
	Narrow, Wide netip.Prefix // the address or /64; the /24 or /48
	Account      string       // canonical; "" for a name that can be nobody's
}

// OriginOf is the origin of a login from peer.
func OriginOf(peer netip.Addr, account string) Origin {
	peer = peer.Unmap().WithZone("")
	narrow, wide := 32, 24
	if peer.Is6() {
		narrow, wide = 64, 48
	}
	o := Origin{Account: account}
	o.Narrow, _ = peer.Prefix(narrow) // zero for an invalid address
	o.Wide, _ = peer.Prefix(wide)
	return o
}

func keyOf(class byte, network netip.Prefix, account string) Key {
	text := append([]byte{class}, network.String()...)
	sum := sha256.Sum256(append(append(text, 0), account...))
	k := Key(sum[:16])
	k[0] = class
	return k
}

// Pair counts the account from the wide network.
func (o Origin) Pair() Key { return keyOf(byPair, o.Wide, o.Account) }

// OwnAddress is the account's own count at the address.
func (o Origin) OwnAddress() Key { return keyOf(ownAddress, o.Narrow, o.Account) }

// OwnNetwork is the account's own count in the wide network.
func (o Origin) OwnNetwork() Key { return keyOf(ownNetwork, o.Wide, o.Account) }

// Public are the counts that judge every login.
func (o Origin) Public() []Key {
	keys := []Key{keyOf(byNarrow, o.Narrow, ""), keyOf(byWide, o.Wide, "")}
	if o.Account != "" {
		keys = append(keys, keyOf(byAccount, netip.Prefix{}, o.Account), o.Pair())
	}
	return keys
}

type count struct {
	failures int       // of all nodes, as far as is known, ours included
	unshared int       // of them, those that only this process knows
	cleared  bool      // and before them, that it began anew
	since    time.Time // of the last halving
	next     time.Time // when the next login may begin
}

const (
	throttleMax   = 1 << 16 // counts held
	halfLife      = 10 * time.Minute
	firstDistance = 250 * time.Millisecond
	maxDistance   = 4 * time.Second
)

// Failures without any delay.
const (
	pairAllowance    = 5
	accountAllowance = 10
	narrowAllowance  = 20
	wideAllowance    = 60
)

// New makes a Throttle that has counted nothing.
func New() *Throttle {
	return &Throttle{counts: make(map[Key]*count), dirty: make(map[Key]struct{})}
}

// waitFor is how long it takes until all counts let a login through.
func (t *Throttle) waitFor(judges []Key, now time.Time) (wait time.Duration) {
	for _, k := range judges {
		if c := t.counts[k]; c != nil {
			wait = max(wait, c.next.Sub(now))
		}
	}
	return wait
}

// pass lets a login through: the next one has to wait for its distance.
func (t *Throttle) pass(judges []Key, now time.Time) {
	for _, k := range judges {
		if c := t.counts[k]; c != nil {
			c.decay(now)
			c.delay(k, now)
		}
	}
}

// Failed counts a failure by what judged it.
func (t *Throttle) Failed(judges []Key, now time.Time) {
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

// Succeeded clears what was failed as the account from its own address.
func (t *Throttle) Succeeded(o Origin, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := o.OwnAddress()
	if c := t.counts[k]; c != nil && c.failures > 0 {
		*c = count{since: now, cleared: true}
		t.dirty[k] = struct{}{}
	}
}

// report is what one process has to tell of a count.
type report struct {
	key      Key
	cleared  bool // before the failures
	failures int
}

// take hands over at most n of the counts that changed, in the order of their keys.
func (t *Throttle) take(n int) []report {
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
func (t *Throttle) giveBack(reports []report) {
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
	key      Key
	failures int
	age      time.Duration // since the last halving
}

// merge takes over totals. A failure that is new here delays logins like one of ours.
func (t *Throttle) merge(totals []total, now time.Time) {
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

func (t *Throttle) add(k Key, now time.Time) *count {
	if len(t.counts) >= throttleMax {
		t.evict(now)
	}
	c := &count{since: now}
	t.counts[k] = c
	return c
}

// evict makes room: the least of a few counts, in the map's random order.
func (t *Throttle) evict(now time.Time) {
	var victim Key
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

// delay postpones the next login.
func (c *count) delay(k Key, now time.Time) {
	if next := now.Add(k.distance(c.failures)); next.After(c.next) {
		c.next = next
	}
}

// distance is the time between logins after so many failures.
func (k Key) distance(failures int) time.Duration {
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

// Distance is the time that these counts put between two logins now.
func (t *Throttle) Distance(judges []Key) (d time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range judges {
		if c := t.counts[k]; c != nil {
			d = max(d, k.distance(c.failures))
		}
	}
	return d
}

// Len is how many counts are held.
func (t *Throttle) Len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.counts)
}
