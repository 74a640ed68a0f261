package throttle

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Place is a login in line. The counts that judge it let one login through at a
// time and keep their distance between two; it waits until all of them are free.
//
// The line is fair by failures. The login whose address has failed least goes first; of
// equal ones the one whose network has failed least, then the one whose account has failed
// least from there. Between equals chance decides, not the time of arrival, for a guesser
// comes back sooner than a person. So an address that has failed less than the
// guessers at other addresses waits for one distance at most; and each connection that guesses
// as the same account from the same address gets the same share of turns as the account's
// own.
type Place struct {
	Judges []Key  // the counts that it waits for
	rank   [3]int // failures of the address, the network, and the account from there
	lot    uint64
	turn   chan struct{} // closed when it may go
	first  bool          // it is the next for all of its judges, and keeps them free
}

// Join takes a place for a login that these counts judge; Leave must follow.
func (t *Throttle) Join(judges []Key, o Origin, now time.Time) *Place {
	p := &Place{Judges: judges, lot: rand.Uint64(), turn: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, k := range []Key{keyOf(byNarrow, o.Narrow, ""), keyOf(byWide, o.Wide, ""), o.Pair()} {
		if c := t.counts[k]; c != nil {
			c.decay(now)
			p.rank[i] = c.failures
		}
	}
	at, _ := slices.BinarySearchFunc(t.line, p, (*Place).compare)
	t.line = slices.Insert(t.line, at, p)
	if wait := t.waitFor(judges, now); wait > 0 {
		t.serveIn(wait, now)
	} else {
		t.serve(now)
	}
	return p
}

func (p *Place) compare(other *Place) int {
	if c := slices.Compare(p.rank[:], other.rank[:]); c != 0 {
		return c
	}
	if p.lot < other.lot {
		return -1
	}
	return 1
}

// Granted is closed when it is the turn of the place; a nil place never has one.
func (p *Place) Granted() <-chan struct{} {
	if p == nil {
		return nil
	}
	return p.turn
}

// IsGranted says whether it has been its turn.
func (p *Place) IsGranted() bool {
	select {
	case <-p.turn:
		return true
	default:
		return false
	}
}

// Leave gives a place up. Its turn, if it had one, is spent.
func (t *Throttle) Leave(p *Place, now time.Time) {
	if p == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.Index(t.line, p)
	if at < 0 {
		return
	}
	t.line = slices.Delete(t.line, at, at+1)
	if p.first {
		t.serve(now)
	}
}

// serve lets those go whose turn it is. A login that is the next for all of its judges, and
// waits for one of them, keeps the others free: else those that need fewer of them
// would always pass it by.
func (t *Throttle) serve(now time.Time) {
	kept := make(map[Key]bool)
	waiting := t.line[:0]
	next := time.Duration(-1)
	for _, p := range t.line {
		p.first = !slices.ContainsFunc(p.Judges, func(k Key) bool { return kept[k] })
		wait := t.waitFor(p.Judges, now)
		if p.first && wait <= 0 {
			t.pass(p.Judges, now)
			close(p.turn)
			continue
		}
		waiting = append(waiting, p)
		if !p.first {
			continue
		}
		for _, k := range p.Judges {
			if c := t.counts[k]; c != nil && k.distance(c.failures) > 0 {
				kept[k] = true
			}
		}
		if next < 0 || wait < next {
			next = wait
		}
	}
	clear(t.line[len(waiting):])
	t.line = waiting
	t.due = time.Time{}
	if next >= 0 {
		t.serveIn(next, now)
	}
}

// serveIn has the line served after a time, if that is not done sooner anyway.
func (t *Throttle) serveIn(wait time.Duration, now time.Time) {
	at := now.Add(wait)
	if !t.due.IsZero() && t.due.After(now) && !t.due.After(at) {
		return
	}
	t.due = at
	if t.timer != nil {
		t.timer.Reset(wait)
		return
	}
	t.timer = time.AfterFunc(wait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.serve(time.Now())
	})
}

// Open is a place that nothing has to let through.
func Open() *Place {
	p := &Place{turn: make(chan struct{})}
	close(p.turn)
	return p
}
