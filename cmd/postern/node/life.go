package node

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"
)

// Run starts the parts and keeps them until the end of ctx. Then it stops them in the
// order in which mail flows: what is accepted is delivered or handed back.
func (n *Node) Run(ctx context.Context, asked Signals) error {
	n.supervisor.status("starting")
	if err := n.start(ctx); err != nil {
		n.close()
		if ctx.Err() != nil {
			return nil // it was asked to stop before it was ready
		}
		return err
	}
	serveErr := make(chan error, 1)
	if n.front != nil {
		go func() { serveErr <- n.front.server.Serve() }()
	}
	watchCtx, endWatch := context.WithCancel(context.Background())
	defer endWatch()
	go n.guard.Keep(watchCtx, "the watchdog", func() { n.supervisor.watchdog(watchCtx, new(pulse).of(n)) })
	n.Log.Info("postern is ready", "version", n.Version, "hostname", n.hostname, "node", n.name, "listeners", n.addresses(), "admin", n.admin.addr())
	n.supervisor.ready(n.summary())

	err := n.serveUntil(ctx, asked, serveErr)
	n.Log.Info("postern is stopping")
	endWatch() // what follows is bounded by itself
	n.stop(asked.cut)
	return err
}

func (n *Node) serveUntil(ctx context.Context, asked Signals, serveErr <-chan error) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-serveErr:
			return err
		case <-asked.reload:
			_ = n.guard.Try("a reload", func() error { n.reload(ctx); return nil })
		}
	}
}

// summary is what the service manager shows of a node that is ready.
func (n *Node) summary() string {
	if n.front == nil {
		return "delivering"
	}
	return "listening on " + strings.Join(n.addresses(), ", ")
}

// afterDrain is what the process may need for its end beyond the drain: a private
// database server is stopped behind it.
const afterDrain = 10 * time.Second

// stop drains the node. It is over within drain_time.
func (n *Node) stop(cut <-chan struct{}) {
	n.admin.drain()
	total := time.Duration(n.Config.DrainTime)
	n.supervisor.stopping(total + afterDrain)
	d := newDrainer(total, cut)
	clean := true
	for _, p := range n.parts() {
		n.supervisor.status("draining: " + p.name)
		if err := d.end(p); err != nil {
			// The rest is in the queue and goes out later: no failure of this process.
			n.Log.Warn("not all work ended in time", "error", err)
			clean = false
		}
	}
	d.rest(n.close)
	n.mail.Flush()
	n.Log.Info("postern has stopped", "clean", clean)
}

// parts are what has to stop, in order, with the shares of the drain's time; see
// docs/operate.md.
func (n *Node) parts() []drainPart {
	var list []drainPart
	var between []func(context.Context) error
	if f := n.front; f != nil {
		list = append(list, drainPart{name: "submission", until: 0.40, stop: f.server.Shutdown})
		between = append(between, f.endLogins, f.closeKeeper)
	}
	if n.back != nil {
		between = append(between, n.back.endNotices)
	}
	list = append(list, drainPart{name: "notices and logins", until: 0.50, stop: func(ctx context.Context) error {
		return together(ctx, between...)
	}})
	if n.back != nil {
		list = append(list, drainPart{name: "delivery", until: 0.75, stop: n.back.endDelivery})
	}
	return append(list, drainPart{name: "queue", until: 0.95, stop: n.closeQueue, writes: true})
}

// together stops parts that do not need each other at the same time.
func together(ctx context.Context, stops ...func(context.Context) error) error {
	errs := make([]error, len(stops))
	var wg sync.WaitGroup
	for i, stop := range stops {
		wg.Go(func() { errs[i] = stop(ctx) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// How long a living process takes at most between two signs of life.
const (
	heartbeatTurn  = 45 * time.Second // the heartbeat's loop, whether the database answers or not
	dispatcherTurn = 2 * time.Minute  // the dispatcher, while the database answers
)

// pulse tells a node that is alive from one that hangs.
type pulse struct {
	away time.Time // when the database last did not answer
}

// of is the question whether n is alive. It is asked by one goroutine, and hangs when
// the sessions' lock does.
func (p *pulse) of(n *Node) func() error {
	return func() error {
		var dispatcher time.Duration
		if n.back != nil {
			dispatcher = n.back.engine.Turned()
		}
		if err := p.judge(n.queue.Turned(), dispatcher, n.queue.Available() == nil); err != nil {
			return err
		}
		if n.front != nil {
			n.front.server.Stats()
		}
		return nil
	}
}

// judge says what hangs by how long ago two loops came round. The dispatcher may wait
// for the database, the heartbeat's loop never does for long.
func (p *pulse) judge(heartbeat, dispatcher time.Duration, answers bool) error {
	if !answers {
		p.away = time.Now()
	}
	switch {
	case heartbeat > heartbeatTurn:
		return fmt.Errorf("the heartbeat's loop has not run for %v", heartbeat.Round(time.Second))
	case dispatcher > dispatcherTurn && time.Since(p.away) > dispatcherTurn:
		return fmt.Errorf("deliveries have not been dispatched for %v", dispatcher.Round(time.Second))
	}
	return nil
}
