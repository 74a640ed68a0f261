package auth

import (
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
	g.done.Add(1)
	work()
	return nil
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
		return ErrBusy
	}
	defer func() { <-g.waiting }()
	timeout := time.NewTimer(g.patience)
	defer timeout.Stop()
	select {
	case g.permits <- struct{}{}:
		return nil
	case <-timeout.C:
		return ErrBusy
	}
}
