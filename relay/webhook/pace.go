package webhook

import (
	"context"
	"time"
)

// pacedFor is how long it takes to send the events that are settled together, where requests are limited by
// the minute.
const pacedFor = 5 * time.Second

// most is how many events are sent before what became of them is written, and how many of them concurrently,
// after so many failures in a row.
func (h *hook) most(failures int) (events, concurrency int) {
	if failures >= failing {
		return 1, 1
	}
	if h.PerMinute > 0 {
		return min(batch, max(1, h.PerMinute/int(time.Minute/pacedFor))), h.Concurrency
	}
	return batch, h.Concurrency
}

// pace spreads requests evenly over each minute.
type pace struct{ last time.Time } // when the last one began, or the worker: another node may have sent until then

// left is how long the next request waits.
func (p *pace) left(perMinute int) time.Duration {
	if perMinute == 0 {
		return 0
	}
	return time.Until(p.last.Add(time.Minute / time.Duration(perMinute)))
}

// wait waits for the next request's turn, or for the end of ctx.
func (p *pace) wait(ctx context.Context, perMinute int) {
	if left := p.left(perMinute); left > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(left):
		}
	}
	p.last = time.Now()
}
