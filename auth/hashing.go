package auth

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/share"
)

// hashing bounds how many password hashes are computed concurrently, and with it their
// memory, how many wait for that, and for how long. A permit belongs to the
// goroutine that hashes: a client that goes away frees nothing.
//
// Strangers take turns, address by address, and one address takes at most two thirds of the
// places to wait. They do not reach the permits before their turn, and there is one more
// turn than permits. So a known address waits for the hashes under way, not for those that
// strangers still want.
type hashing struct {
	permits  chan struct{}
	turns    *share.Pool // of strangers, that may ask for a permit
	strange  *share.Pool // places to wait
	known    *share.Pool // and those of known addresses
	patience time.Duration
	done     atomic.Int64 // hashes computed
	garbage  atomic.Int64 // of them, those whose memory may not have been collected
	// collecting is held while their memory is collected.
	collecting sync.Mutex

	waited  atomic.Int64 // nanoseconds of waiting for a permit, all together
	refused atomic.Int64 // that got none
}

// waitPart is how much of the free places to wait one address may take.
const waitPart = 2

func newHashing(permits, queue int, patience time.Duration) *hashing {
	return &hashing{
		permits: make(chan struct{}, permits),
		// The last turn is for an address that has none; all others may be of one address.
		turns:    share.New(int64(permits)+1, float64(permits)),
		strange:  share.New(int64(queue), waitPart),
		known:    share.New(int64(queue), waitPart),
		patience: patience,
	}
}

// asker is the client for whom a hash is computed.
type asker struct {
	address netip.Prefix
	known   bool // the account is known there
}

// do runs work with a permit, or returns ErrBusy.
func (g *hashing) do(who asker, work func()) error {
	if err := g.enter(who); err != nil {
		return err
	}
	defer g.leave(who)
	// A hash leaves 19 MiB of garbage, and the runtime would let the heap grow to twice its
	// size before it collects that. Collecting takes a tenth of a hash's time.
	g.collect()
	g.done.Add(1)
	work()
	g.garbage.Add(1)
	return nil
}

// collect returns when what earlier hashes left is collected. A collection that another
// caller has begun is waited for: its garbage is still there.
func (g *hashing) collect() {
	g.collecting.Lock()
	defer g.collecting.Unlock()
	if g.garbage.Swap(0) > 0 {
		runtime.GC()
	}
}

func (g *hashing) enter(who asker) error {
	if g.enterNow(who) {
		return nil
	}
	places := g.strange
	if who.known {
		places = g.known
	}
	if !places.Take(1, who.address) {
		g.refused.Add(1)
		return ErrBusy
	}
	began := time.Now()
	defer func() {
		g.waited.Add(int64(time.Since(began)))
		places.Give(1, who.address)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), g.patience)
	defer cancel()
	if !who.known && g.turns.Wait(ctx, 1, who.address) != nil {
		g.refused.Add(1)
		return ErrBusy
	}
	select {
	case g.permits <- struct{}{}:
		return nil
	case <-ctx.Done():
		g.endTurn(who)
		g.refused.Add(1)
		return ErrBusy
	}
}

// enterNow takes a permit that is free.
func (g *hashing) enterNow(who asker) bool {
	if !who.known && !g.turns.Take(1, who.address) {
		return false
	}
	select {
	case g.permits <- struct{}{}:
		return true
	default:
		g.endTurn(who)
		return false
	}
}

func (g *hashing) leave(who asker) {
	<-g.permits
	g.endTurn(who)
}

func (g *hashing) endTurn(who asker) {
	if !who.known {
		g.turns.Give(1, who.address)
	}
}

// waiting is how many wait for a permit.
func (g *hashing) waiting() int {
	strange, _ := g.strange.Use()
	known, _ := g.known.Use()
	return int(strange + known)
}
