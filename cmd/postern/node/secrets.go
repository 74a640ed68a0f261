package node

import (
	"context"
	"sync/atomic"
	"time"

	"postern/admin"
	"postern/relay/upstream"
)

const (
	secretsEvery = time.Minute
	secretsTime  = 10 * time.Second
	budgetsEvery = 10 * time.Second
)

// secrets looks after what upstream accounts are proved by, for the metrics and the log, and at
// what is used of their budgets.
type secrets struct {
	node    *Node
	store   *upstream.Store
	last    atomic.Pointer[[]upstream.Secret]
	budgets atomic.Pointer[[]admin.UpstreamBudget]
}

func (s *secrets) spent() []admin.UpstreamBudget {
	if last := s.budgets.Load(); last != nil {
		return *last
	}
	return nil
}

// watchBudgets reads what is used, if anybody is to see it.
func (s *secrets) watchBudgets(ctx context.Context) {
	tick := time.NewTicker(budgetsEvery)
	defer tick.Stop()
	for s.node.metrics != nil {
		if err := s.lookAtBudgets(ctx); err != nil && ctx.Err() == nil {
			s.node.Log.Warn("the budgets of upstreams could not be looked at", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *secrets) lookAtBudgets(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, secretsTime)
	defer cancel()
	found, err := s.store.Budgets(ctx)
	if err != nil {
		return err
	}
	var list []admin.UpstreamBudget
	for i := range found {
		u := &found[i]
		list = append(list, admin.UpstreamBudget{Upstream: u.Upstream, Limit: u.String(), Used: u.Used(), Most: u.Max, Waiting: u.Waiting})
	}
	s.budgets.Store(&list)
	return nil
}

func (s *secrets) list() []upstream.Secret {
	if last := s.last.Load(); last != nil {
		return *last
	}
	return nil
}

func (s *secrets) run(ctx context.Context) {
	tick := time.NewTicker(secretsEvery)
	defer tick.Stop()
	for {
		if err := s.look(ctx); err != nil && ctx.Err() == nil {
			s.node.Log.Warn("the secrets of upstreams could not be looked at", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
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
