// Package share gives out a bounded amount of something, so that nobody holds all of it.
//
// Job: a Pool counts what is held, in all and by each holder: a user, an address, a
// destination. A caller names all holders that it takes for.
//
// Invariant: a holder gets more only while it then holds at most Part times what is
// still free; a holder of nothing needs no more than that there is room. So one holder
// alone comes to Part/(1+Part) of the pool, k that grow together to Part/(1+k·Part) each, and
// 1/(1+k·Part) stays free for the next; of those that come one after the other each leaves
// 1/(1+Part) of what it found. Nothing that is held is taken away; as others come, a large
// holder gets no more until it has given back.
//
// Those that wait are served by turns, one holder after the other, each in the order
// in which it came.
//
// A Pool reserves and moves nothing itself: what is counted is the caller's.
package share

import (
	"container/list"
	"context"
	"math"
	"sync"
)

// Pool is a bounded amount of something. It is safe for concurrent use.
type Pool struct {
	part float64

	mu    sync.Mutex
	size  int64
	used  int64
	held  map[any]int64
	turns list.List             // of *line, who is served next in front
	lines map[any]*list.Element // of turns, by the holder in whose name is waited
}

// line is those that wait in the name of one holder.
type line struct {
	holder any
	asks   list.List // of *ask
}

type ask struct {
	amount  int64
	holders []any
	granted chan struct{} // closed
}

// New makes a pool of size units in which a holder may come to part times what is free.
func New(size int64, part float64) *Pool {
	return &Pool{part: part, size: size, held: make(map[any]int64), lines: make(map[any]*list.Element)}
}

// Take takes amount for all holders, which are comparable and not equal to each other,
// or nothing. It does not pass those that wait in the name of the first holder.
func (p *Pool) Take(amount int64, holders ...any) bool { return p.TakeBut(0, amount, holders...) }

// TakeBut is Take from a pool that is smaller by kept, which is for other holders.
func (p *Pool) TakeBut(kept, amount int64, holders ...any) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.fitsBut(kept, amount, holders) {
		return false
	}
	p.add(amount, holders)
	return true
}

// Add takes amount whatever the rule says: what is there must be counted.
func (p *Pool) Add(amount int64, holders ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(amount, holders)
}

// Fits reports whether Take would take it now. It is a question and holds nothing.
func (p *Pool) Fits(amount int64, holders ...any) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.fits(amount, holders)
}

// Wait takes amount for all holders as soon as it may, and waits in the name of the
// first. The error is that of ctx; then nothing is held.
func (p *Pool) Wait(ctx context.Context, amount int64, holders ...any) error {
	p.mu.Lock()
	if p.lines[holders[0]] == nil && p.fits(amount, holders) {
		p.add(amount, holders)
		p.mu.Unlock()
		return nil
	}
	a := &ask{amount: amount, holders: holders, granted: make(chan struct{})}
	at := p.queue(a)
	p.mu.Unlock()
	select {
	case <-a.granted:
		return nil
	case <-ctx.Done():
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-a.granted: // meanwhile
		p.give(amount, holders)
	default:
		p.drop(holders[0], at)
	}
	return ctx.Err()
}

// Give gives back what was taken for the same holders.
func (p *Pool) Give(amount int64, holders ...any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.give(amount, holders)
}

// Join counts what was taken for one more holder, or does not: one that becomes known
// only then. The holder gives it back by Leave.
func (p *Pool) Join(amount int64, holder any) bool { return p.JoinBut(0, amount, holder) }

// JoinBut is Join in a pool that is smaller by kept, which is for other holders.
func (p *Pool) JoinBut(kept, amount int64, holder any) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.within(amount, holder, p.size-kept-p.used) {
		return false
	}
	p.held[holder] += amount
	return true
}

// Leave takes Join back.
func (p *Pool) Leave(amount int64, holder any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lower(amount, holder)
	p.serve()
}

// Full reports that a holder holds something and would not get amount more.
func (p *Pool) Full(amount int64, holder any) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.within(amount, holder, p.size-p.used-amount)
}

// Filled lists the holders that would not get amount more.
func (p *Pool) Filled(amount int64) (list []any) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for h := range p.held {
		if !p.within(amount, h, p.size-p.used-amount) {
			list = append(list, h)
		}
	}
	return list
}

// Resize changes the size. All that is held stays held, even beyond it.
func (p *Pool) Resize(size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.size = size
	p.serve()
}

// Use says how much is held and how much there is.
func (p *Pool) Use() (used, size int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.used, p.size
}

// Held is what one holder holds.
func (p *Pool) Held(holder any) int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[holder]
}

// Pressed reports that somebody waits or that less than a quarter is free.
func (p *Pool) Pressed() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.turns.Len() > 0 || p.used > p.size-p.size/4
}

// fits is the rule of the package.
func (p *Pool) fits(amount int64, holders []any) bool { return p.fitsBut(0, amount, holders) }

func (p *Pool) fitsBut(kept, amount int64, holders []any) bool {
	free := p.size - kept - p.used - amount
	if free < 0 {
		return false
	}
	for _, h := range holders {
		if !p.within(amount, h, free) {
			return false
		}
	}
	return true
}

// within is the rule for one holder, who is to have amount more while free is left.
func (p *Pool) within(amount int64, holder any, free int64) bool {
	held := p.held[holder]
	return held == 0 || float64(held+amount) <= math.Ceil(p.part*float64(free))
}

// lower counts amount out for a holder.
func (p *Pool) lower(amount int64, holder any) {
	if p.held[holder] -= amount; p.held[holder] <= 0 {
		delete(p.held, holder)
	}
}

func (p *Pool) add(amount int64, holders []any) {
	p.used += amount
	for _, h := range holders {
		p.held[h] += amount
	}
}

func (p *Pool) give(amount int64, holders []any) {
	p.used -= amount
	for _, h := range holders {
		p.lower(amount, h)
	}
	p.serve()
}

// serve grants what may be granted, by turns.
func (p *Pool) serve() {
	for passed := 0; passed < p.turns.Len(); {
		turn := p.turns.Front()
		p.turns.MoveToBack(turn)
		l := turn.Value.(*line)
		at := p.firstFit(l)
		if at == nil {
			passed++
			continue
		}
		passed = 0
		a := at.Value.(*ask)
		p.add(a.amount, a.holders)
		close(a.granted)
		p.drop(l.holder, at)
	}
}

// firstFit is the first of a line that may be granted: one that waits for its second
// holder keeps no other of the line waiting.
func (p *Pool) firstFit(l *line) *list.Element {
	for at := l.asks.Front(); at != nil; at = at.Next() {
		if a := at.Value.(*ask); p.fits(a.amount, a.holders) {
			return at
		}
	}
	return nil
}

// queue lets a wait, and returns its place.
func (p *Pool) queue(a *ask) *list.Element {
	turn := p.lines[a.holders[0]]
	if turn == nil {
		turn = p.turns.PushBack(&line{holder: a.holders[0]})
		p.lines[a.holders[0]] = turn
	}
	return turn.Value.(*line).asks.PushBack(a)
}

// drop takes an ask out of the line of a holder, and the line out of the turns when it
// was the last.
func (p *Pool) drop(holder any, at *list.Element) {
	turn := p.lines[holder]
	l := turn.Value.(*line)
	l.asks.Remove(at)
	if l.asks.Len() == 0 {
		p.turns.Remove(turn)
		delete(p.lines, holder)
	}
}
