package node

import (
	"context"
	"time"

	"postern/relay/upstream"
)

// secrets reads when the secrets of upstream accounts end, and says in the log which end soon, and
// which do not open here.
type secrets struct {
	node   *Node
	store  *upstream.Store
	closed map[string]error // as of the last look, by upstream
}

func (s *secrets) look(ctx context.Context) ([]upstream.Secret, error) {
	accounts, closed, err := s.store.Usable(ctx)
	if err != nil {
		return nil, err
	}
	s.compare(closed)
	list, err := s.store.Secrets(ctx, accounts)
	if err != nil {
		return nil, err
	}
	return list, s.store.TellExpiring(ctx, func(t upstream.Secret) {
		say := s.node.Log.Warn
		if t.DaysLeft(time.Now()) <= 1 {
			say = s.node.Log.Error
		}
		say("the secret of an upstream's account expires", "upstream", t.Upstream, "on", t.Expires.Format(time.DateOnly), "days", t.DaysLeft(time.Now()))
	})
}

// compare logs what has changed since the last look.
func (s *secrets) compare(closed map[string]error) {
	for name, err := range closed {
		if s.closed[name] == nil {
			s.node.Log.Error("upstream cannot be used by this node: its mail takes the next way, or waits; see 'postern check --only upstream' here",
				"upstream", name, "error", err)
		}
	}
	for name := range s.closed {
		if closed[name] == nil {
			s.node.Log.Info("upstream can be used by this node again", "upstream", name)
		}
	}
	s.closed = closed
}
