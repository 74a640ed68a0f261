package node

import (
	"context"
	"sync"

	"github.com/prometheus/client_golang/prometheus"

	"postern/admin"
	"postern/relay/refused"
	"postern/relay/suppression"
)

// suppressing follows the suppression list, and tells of the recipients that were refused.
type suppressing struct {
	list    *suppression.List
	refused *refused.Counter
	stop    context.CancelFunc
	loop    sync.WaitGroup
}

// buildSuppression gives it connections of its own: many clients may ask, and mail goes on.
func (n *Node) buildSuppression(ctx context.Context) error {
	pool, err := n.pool(ctx, "suppression", 2, nil)
	if err != nil {
		return err
	}
	n.suppressing.list = suppression.New(suppression.Config{DB: pool, Log: n.Log})
	n.suppressing.refused = refused.NewCounter(pool, n.Log)
	return nil
}

func (n *Node) startSuppression() {
	s := &n.suppressing
	loop, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.loop.Go(func() { n.guard.Keep(loop, "suppressions", func() { s.list.Run(loop) }) })
	s.loop.Go(func() { n.guard.Keep(loop, "refused recipients", func() { s.refused.Run(loop) }) })
}

func (s *suppressing) close() {
	if s.stop != nil {
		s.stop()
		s.loop.Wait()
	}
}

func (s *suppressing) register(r *prometheus.Registry) {
	admin.Register(r, nil, s.list.Entries, []admin.Reading[int]{
		{Name: "postern_suppression_entries", Help: "Addresses and patterns on the suppression list of anybody; -1 while this node does not know them all.", Value: number[int]},
	})
}
