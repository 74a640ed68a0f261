package node

import (
	"context"
	"errors"
	"sync"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/relay/keyring"
	"postern/relay/seal"
)

// sealing are the sealing keys of a node.
type sealing struct {
	sealer *seal.Sealer // nil: it needs none, or its file cannot be read
	err    error        // at the start
	ring   *keyring.Ring
	stop   context.CancelFunc
	loop   sync.WaitGroup
}

// openKeys comes before all that seals. A node whose file lacks the current key seals nothing
// until the ring has seen the right file. The error is the database's.
func (n *Node) openKeys(ctx context.Context, pool *pgxpool.Pool) error {
	k := &n.keys
	if n.Only != "submission" || n.Config.ACME.On() {
		if k.sealer, k.err = n.Source.Sealer(n.Config); k.err != nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(ctx, startTime)
		defer cancel()
		if k.err = keyring.Follow(ctx, pool, k.sealer); k.err != nil && !errors.Is(k.err, seal.ErrSeal) {
			return k.err
		}
	}
	k.ring = keyring.New(keyring.Config{Pool: pool, Sealer: k.sealer, Node: n.name, Epoch: n.queue.Epoch, Log: n.Log})
	return nil
}

func (n *Node) startKeys() {
	if n.keys.ring == nil {
		return
	}
	ctx, stop := context.WithCancel(context.Background())
	n.keys.stop = stop
	n.keys.loop.Go(func() { n.guard.Keep(ctx, "sealing keys", func() { n.keys.ring.Run(ctx) }) })
}

func (k *sealing) close() {
	if k.stop != nil {
		k.stop()
		k.loop.Wait()
	}
}
