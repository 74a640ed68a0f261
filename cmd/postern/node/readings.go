package node

import (
	"context"
	"sync/atomic"
	"time"
)

// readingTime bounds a reading.
const readingTime = 10 * time.Second

// readings is what was last read of parts that all nodes share, for the metrics.
type readings[T any] struct {
	node  *Node
	what  string
	every time.Duration
	read  func(context.Context) ([]T, error)
	last  atomic.Pointer[[]T]
}

func (r *readings[T]) list() []T {
	if last := r.last.Load(); last != nil {
		return *last
	}
	return nil
}

// run reads until ctx ends. A list counts also where something else went wrong.
func (r *readings[T]) run(ctx context.Context) {
	tick := time.NewTicker(r.every)
	defer tick.Stop()
	for {
		brief, cancel := context.WithTimeout(ctx, readingTime)
		list, err := r.read(brief)
		cancel()
		if list != nil || err == nil {
			r.last.Store(&list)
		}
		if err != nil && ctx.Err() == nil {
			r.node.Log.Warn("the "+r.what+" could not be read", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
