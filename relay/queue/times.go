package queue

import "time"

// Times are the spans of Config that may change while the queue runs.
type Times struct {
	Lifetime    time.Duration // of messages accepted from then on
	DelayNotice time.Duration // from the next deferral of a recipient on
}

// SetTimes changes the spans that are not zero.
func (q *Queue) SetTimes(t Times) {
	now := *q.times.Load()
	for _, d := range []struct {
		to   *time.Duration
		from time.Duration
	}{{&now.Lifetime, t.Lifetime}, {&now.DelayNotice, t.DelayNotice}} {
		if d.from > 0 {
			*d.to = d.from
		}
	}
	q.times.Store(&now)
}
