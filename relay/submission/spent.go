package submission

import (
	"sync"
	"sync/atomic"
	"time"

	"postern/policy"
	"postern/policy/quota"
)

const (
	maxSpent = 10000
	// spentFor bounds how long a refusal by the database is believed: an admin may
	// have changed the limit, or this host's clock may be behind the database's.
	spentFor = time.Minute
)

// spent remembers limits by which the queue has refused a message, so that a
// client at its limit is refused immediately and costs no more than that. It refuses
// nothing that the queue would accept: less of a window is used only once RetryAt has
// come, and until then as much as was refused does not fit. A limit with another
// maximum is another limit. The zero value is empty.
type spent struct {
	n  atomic.Int64 // entries
	mu sync.Mutex
	by map[quota.Limit]refused
}

// refused is what was refused, and until when the same and more will be.
type refused struct {
	over  quota.Over
	until time.Time // by the monotonic clock
}

// note remembers a refusal that happened at now.
func (sp *spent) note(over *quota.Over, now time.Time) {
	// now.Add keeps the monotonic reading; RetryAt, which came from afar, has none.
	left := min(over.RetryAt.Sub(now), spentFor)
	if over.RetryAt.IsZero() || left <= 0 {
		return
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	if sp.by == nil {
		sp.by = make(map[quota.Limit]refused)
	}
	if _, known := sp.by[over.Limit]; !known && len(sp.by) >= maxSpent {
		sp.makeRoom(now)
	}
	sp.by[over.Limit] = refused{over: *over, until: now.Add(left)}
	sp.n.Store(int64(len(sp.by)))
}

// makeRoom drops what is over, or anything: forgetting costs an upload and no more.
func (sp *spent) makeRoom(now time.Time) {
	for l, r := range sp.by {
		if !now.Before(r.until) {
			delete(sp.by, l)
		}
	}
	for l := range sp.by {
		if len(sp.by) < maxSpent {
			return
		}
		delete(sp.by, l)
	}
}

// refuses returns the refusal that amount would meet again, or nil.
func (sp *spent) refuses(l quota.Limit, amount int64, now time.Time) *quota.Over {
	if sp.n.Load() == 0 {
		return nil
	}
	sp.mu.Lock()
	defer sp.mu.Unlock()
	r, ok := sp.by[l]
	if !ok {
		return nil
	}
	if !now.Before(r.until) {
		delete(sp.by, l)
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
func (s *session) overLimit(kind quota.Kind, amount int64) policy.Verdict {
	if s.server.spent.n.Load() == 0 {
		return policy.Verdict{Allowed: true}
	}
	now := time.Now()
	for _, l := range s.identity.Limits {
		if l.Kind != kind {
			continue
		}
		if over := s.server.spent.refuses(l, amount, now); over != nil {
			return policy.OverLimit(over, now)
		}
	}
	return policy.Verdict{Allowed: true}
}
