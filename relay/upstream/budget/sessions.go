package budget

import (
	"context"
	"time"
)

// sessions are the connections that this node may have to an upstream.
type sessions struct {
	Limit
	have, used int64
	wanted     int64         // by those that wait for one here
	epoch      int64         // under which they are leased
	tryAt      time.Duration // more are not asked for before
	idleAt     time.Duration // since when some are not used
}

// Session counts a connection to an upstream that is about to be opened, and waits a few seconds
// for room at most. leave counts it out; it is nil if there is no room.
func (b *Budgets) Session(ctx context.Context, a Ask) (leave func(), wait *Wait) {
	if a.Setting == "" {
		return func() {}, nil
	}
	timer := time.NewTimer(patience)
	defer timer.Stop()
	for {
		b.mu.Lock()
		u := b.account(&a)
		leave, s, answered := b.enter(u.sessions), u.sessions, u.answered
		b.mu.Unlock()
		if leave != nil {
			return leave, nil
		}
		b.wake()
		select {
		case <-answered:
		case <-timer.C:
			return nil, &Wait{"waits for a connection to upstream " + a.Upstream + ": " + s.String() + " over all nodes", sessionWait}
		case <-ctx.Done():
			return nil, &Wait{"waits for a connection to upstream " + a.Upstream, 0}
		}
	}
}

// enter uses one of the sessions that this node has. mu is held.
func (b *Budgets) enter(s *sessions) (leave func()) {
	switch {
	case s == nil:
		return func() {}
	case s.used >= s.have || s.epoch != b.cfg.Epoch():
		s.wanted++
		return nil
	}
	s.used++
	return func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		s.used--
		s.idleAt = b.cfg.Clock.Now()
		b.wake()
	}
}
