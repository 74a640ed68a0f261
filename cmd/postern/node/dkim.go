package node

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/dkim/keys"
	"postern/relay/resolver"
)

// signing are the DKIM keys of a node, which follows them while it runs.
type signing struct {
	ring *keys.Ring
	stop context.CancelFunc
	loop sync.WaitGroup
}

// buildSigning comes after openKeys. A node with only the front knows which domains have keys, and
// opens none.
func (n *Node) buildSigning(pool *pgxpool.Pool) {
	n.signing.ring = keys.New(keys.Config{
		Pool: pool, Sealer: n.keys.sealer, Node: n.name,
		Lifetime: time.Duration(n.Config.Queue.Lifetime), Log: n.Log, Guard: n.guard,
	})
}

// startSigning comes before mail is accepted or sent: from the first message on, the keys are known.
func (n *Node) startSigning(ctx context.Context) error {
	s := &n.signing
	if _, err := s.ring.Load(ctx); err != nil {
		return err
	}
	var dns *resolver.Resolver
	if n.back != nil {
		dns = n.back.dns
	}
	loop, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.loop.Go(func() { n.guard.Keep(loop, "DKIM keys", func() { s.ring.Run(loop, dns) }) })
	return nil
}

func (s *signing) close() {
	if s.stop != nil {
		s.stop()
		s.loop.Wait()
	}
}
