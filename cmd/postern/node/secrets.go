package node

import (
	"context"
	"time"

	"postern/relay/upstream"
)

// secrets reads when the secrets of upstream accounts end, and says in the log which end soon.
type secrets struct {
	node  *Node
	store *upstream.Store
}

func (s *secrets) look(ctx context.Context) ([]upstream.Secret, error) {
	accounts, _, err := s.store.Usable(ctx)
	if err != nil {
		return nil, err
	}
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
