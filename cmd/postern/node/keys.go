package node

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/keyring"
	"postern/relay/seal"
)

// keys are the sealing keys of a node that needs any.
type keys struct {
	sealer *seal.Sealer // nil: it needs none, or err
	err    error
	ring   *keyring.Ring
	stop   context.CancelFunc
	loop   sync.WaitGroup
}

// openKeys comes before all that seals: a node whose file lacks the current key must not seal
// with a former one, which may be in no other file any more. The error is the database's.
func (n *Node) openKeys(ctx context.Context, pool *pgxpool.Pool) error {
	k := &n.keys
	if n.Only == "submission" && !n.Config.ACME.On() {
		return nil
	}
	sealer, err := n.Source.Sealer(n.Config)
	if k.err = err; err != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	err = keyring.Follow(ctx, pool, sealer)
	if errors.Is(err, seal.ErrSeal) {
		k.err = err
		return nil
	}
	k.sealer = sealer
	k.ring = keyring.New(keyring.Config{Pool: pool, Sealer: sealer, Node: n.name, Epoch: n.queue.Epoch, Log: n.Log})
	return err
}

func (n *Node) startKeys() {
	if n.keys.ring == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	n.keys.stop = stop
	n.keys.loop.Go(func() { n.guard.Keep(ctx, "sealing keys", func() { n.keys.ring.Run(ctx) }) })
}

func (k *keys) close() {
	if k.stop != nil {
		k.stop()
		k.loop.Wait()
	}
}
