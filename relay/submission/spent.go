package submission

import (
	"sync"
	"sync/atomic"
	"time"

	"postern/policy"
	"postern/relay/queue"
)

const (
	maxSpent = 10000
	// spentFor bounds how long the word of the database is taken for true: an admin
	// may have set a limit anew, or this host's clock be behind the database's.
	spentFor = time.Minute
)

// spent remembers limits by which the queue has refused a message, so that a
// client at its limit hears so at once and costs no more than that. It refuses nothing
// that the queue would accept: less of a window is used only once RetryAt has come,
// and until then as much as was refused does not fit. A limit with another
// maximum is another limit. The zero value is empty.
type spent struct {
	n  atomic.Int64 // entries
	mu sync.Mutex
	by map[queue.Charge]refused
}

// refused is what was refused, and until when the same and more will be.
type refused struct {
	over  queue.OverLimit
	until time.Time // by the monotonic clock
}

// note remembers a refusal that happened at now.
func (sp *spent) note(over *queue.OverLimit, now time.Time) {
	// now.Add keeps the monotonic reading; RetryAt, which came from afar, has none.
	left := min(over.RetryAt.Sub(now), spentFor)
	if over.RetryAt.IsZero() || left <= 0 {
		return
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.by == nil {
		sp.by = make(map[queue.Charge]refused)
	}
	if _, known := sp.by[over.Charge]; !known && len(sp.by) >= maxSpent {
		sp.makeRoom(now)
	}
	sp.by[over.Charge] = refused{over: *over, until: now.Add(left)}
	sp.n.Store(int64(len(sp.by)))
}

// makeRoom drops what is over, or anything: forgetting costs an upload and no more.
func (sp *spent) makeRoom(now time.Time) {
	for c, r := range sp.by {
		if !now.Before(r.until) {
			delete(sp.by, c)
		}
	}
	for c := range sp.by {
		if len(sp.by) < maxSpent {
			return
		}
		delete(sp.by, c)
	}
}

// refuses returns the refusal that amount would meet again, or nil.
func (sp *spent) refuses(c queue.Charge, amount int64, now time.Time) *queue.OverLimit {
	if sp.n.Load() == 0 {
		return nil
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	r, ok := sp.by[c]
	if !ok {
		return nil
	}
	if !now.Before(r.until) {
		delete(sp.by, c)
		sp.n.Store(int64(len(sp.by)))
		return nil
	}
	if amount < r.over.Amount {
		return nil
	}
	return &r.over
}

// overLimit judges what a message would count against the limits of a kind, by
// what is known without the database.
func (s *session) overLimit(kind queue.ChargeKind, amount int64) policy.Verdict {
	if s.server.spent.n.Load() == 0 {
		return policy.Verdict{Allowed: true}
	}
	now := time.Now()
	for _, l := range s.identity.Limits {
		c := ChargeOf(*s.identity, l)
		if !l.Kind.Windowed() || c.Kind != kind {
			continue
		}
		if over := s.server.spent.refuses(c, amount, now); over != nil {
			return policy.OverLimit(exceeded(over), now)
		}
	}
	return policy.Verdict{Allowed: true}
}

// exceeded is the queue's refusal in the words of the policy.
func exceeded(over *queue.OverLimit) policy.Exceeded {
	return policy.Exceeded{Limit: LimitOf(over.Charge), Used: over.Used, Amount: over.Amount, RetryAt: over.RetryAt}
}
