package node

import (
	"context"
	"sync/atomic"
	"time"

	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

const (
	secretsEvery = time.Minute
	secretsTime  = 10 * time.Second
	budgetsEvery = 10 * time.Second
)

// secrets reads for the metrics and the log when the secrets of upstream accounts end, and what is
// used of their budgets.
type secrets struct {
	node    *Node
	store   *upstream.Store
	last    atomic.Pointer[[]upstream.Secret]
	budgets atomic.Pointer[[]budget.Usage]
}

func (s *secrets) list() []upstream.Secret { return latest(&s.last) }

func (s *secrets) used() []budget.Usage { return latest(&s.budgets) }

func latest[T any](p *atomic.Pointer[[]T]) []T {
	if last := p.Load(); last != nil {
		return *last
	}
	return nil
}

// run calls look at each interval.
func (s *secrets) run(ctx context.Context, every time.Duration, what string, look func(context.Context) error) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := look(ctx); err != nil && ctx.Err() == nil {
			s.node.Log.Warn("the "+what+" of upstreams could not be looked at", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// lookAtBudgets reads what is used, if there are metrics to show it.
func (s *secrets) lookAtBudgets(ctx context.Context) error {
	if s.node.metrics == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, secretsTime)
	defer cancel()
	list, err := s.store.Budgets(ctx)
	if err == nil {
		s.budgets.Store(&list)
	}
	return err
}

func (s *secrets) look(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, secretsTime)
	defer cancel()
	accounts, _, err := s.store.Usable(ctx)
	if err != nil {
		return err
	}
	list, err := s.store.Secrets(ctx, accounts)
	if err != nil {
		return err
	}
	s.last.Store(&list)
	return s.store.TellExpiring(ctx, func(t upstream.Secret) {
		say := s.node.Log.Warn
		if t.DaysLeft(time.Now()) <= 1 {
			say = s.node.Log.Error
		}
		say("the secret of an upstream's account expires", "upstream", t.Upstream, "on", t.Expires.Format(time.DateOnly), "days", t.DaysLeft(time.Now()))
	})
}
