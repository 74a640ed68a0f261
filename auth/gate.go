package auth

import (
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// gate bounds how many password hashes are computed at once, and with it their
// memory, how many wait for that, and for how long. A permit belongs to the
// goroutine that hashes: a client that goes away frees nothing.
type gate struct {
	permits  chan struct{}
	waiting  chan struct{}
	patience time.Duration
	done     atomic.Int64 // hashes computed
	waited   atomic.Int64 // nanoseconds of waiting for a permit, all together
	refused  atomic.Int64 // that got none

	garbage    atomic.Int64 // hashes whose memory may not have been collected
	collecting sync.Mutex
}

func newGate(permits, queue int, patience time.Duration) *gate {
	return &gate{
		permits:  make(chan struct{}, permits),
		waiting:  make(chan struct{}, queue),
		patience: patience,
	}
}

// do runs work with a permit, or returns ErrBusy.
func (g *gate) do(work func()) error {
	if err := g.enter(); err != nil {
		return err
	}
	defer func() { <-g.permits }()
	g.collect()
	g.done.Add(1)
	work()
	g.garbage.Add(1)
	return nil
}

// collect frees what hashes have used: it is garbage of 19 MiB each, and left alone the
// heap grows to twice its size before that is collected. Collecting takes a tenth of a
// hash's time. Nobody begins to hash before it is over: what two have left and a third
// takes would be one too many.
func (g *gate) collect() {
	g.collecting.Lock()
	defer g.collecting.Unlock()
	if g.garbage.Swap(0) > 0 {
		runtime.GC()
	}
}

func (g *gate) enter() error {
	select {
	case g.permits <- struct{}{}:
		return nil
	default:
	}
	select {
	case g.waiting <- struct{}{}:
	default:
		g.refused.Add(1)
		return ErrBusy
	}
	began := time.Now()
	defer func() {
		g.waited.Add(int64(time.Since(began)))
		<-g.waiting
	}()
	timeout := time.NewTimer(g.patience)
	defer timeout.Stop()
	select {
	case g.permits <- struct{}{}:
		return nil
	case <-timeout.C:
		g.refused.Add(1)
		return ErrBusy
	}
}
