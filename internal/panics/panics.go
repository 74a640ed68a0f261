// Package panics keeps a defect from ending the process. Otherwise a row, a reply or a file
// that nobody foresaw would stop every node that meets it, again after every restart.
package panics

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"
)

// pause is how long a loop that panicked rests.
const pause = time.Second

// Guard recovers panics, logs each with its stack, and counts them. Nil guards as well,
// without a log and a count.
type Guard struct {
	log    *slog.Logger
	caught atomic.Int64
}

// New makes a Guard.
func New(log *slog.Logger) *Guard { return &Guard{log: log} }

// Caught is how many panics were recovered.
func (g *Guard) Caught() int64 {
	if g == nil {
		return 0
	}
	return g.caught.Load()
}

// Error is a panic that was recovered.
type Error struct{ Value any }

func (e *Error) Error() string { return fmt.Sprintf("panic: %v", e.Value) }

// Try returns what do returns, or an *Error when it panics. what says in the log what was
// being done.
func (g *Guard) Try(what string, do func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			from := passedOn(p)
			err = &Error{from.value}
			if g != nil {
				g.caught.Add(1)
				g.log.Error("panic", "in", what, "panic", from.value, "stack", string(from.stack))
			}
		}
	}()
	return do()
}

// Keep runs a loop, and runs it again a second after each panic until ctx ends. It returns
// when the loop does.
func (g *Guard) Keep(ctx context.Context, what string, run func()) {
	for g.Try(what, func() error { run(); return nil }) != nil {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}
