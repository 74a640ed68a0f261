package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/internal/panics"
	"postern/relay/queue"
	"postern/relay/submission"
)

// reloadTime bounds a reload, for the file system may hang.
const reloadTime = 30 * time.Second

// reload reads the configuration again and applies what can be. When anything is wrong
// with it, nothing changes. Files are read, nobody is asked over the network.
func (n *Node) reload(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	n.supervisor.reloading()
	defer func() { n.supervisor.ready(n.summary()) }()
	next, err := inTime(ctx, n.reread)
	if err == nil && n.front != nil {
		_, err = inTime(ctx, func() (struct{}, error) { return struct{}{}, n.front.certs.Reload() })
	}
	if err != nil {
		n.Log.Error("the configuration is not reloaded, the node keeps the old one", "error", screen.OneLine(err.Error()))
		return
	}
	running := n.Config
	running.Listeners = slices.Clone(n.Config.Listeners)
	applied, restart := config.Adopt(&running, next)
	if err := n.apply(running); err != nil { // a defect: what can be wrong was checked before
		n.Log.Error("the configuration is applied in part: restart the node", "error", err)
		return
	}
	n.Log.Info("configuration reloaded", "applied", strings.Join(applied, ", "), "needs_restart", strings.Join(restart, ", "))
}

// inTime is what do returns, or an error when ctx ends before: a file system that hangs
// must keep the node neither at its reload nor from its drain.
func inTime[T any](ctx context.Context, do func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		var r result
		r.err = (*panics.Guard)(nil).Try("reading files", func() (err error) {
			r.value, err = do()
			return err
		})
		done <- r
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("reading its files did not finish: %w", context.Cause(ctx))
	}
}

// reread is the configuration as it is now, wholly checked.
func (n *Node) reread() (config.Config, error) {
	next, found, err := n.Source.Load()
	switch {
	case err != nil:
		return next, err
	case !found:
		return next, errors.New("the configuration file is gone")
	case n.front != nil && len(next.Listeners) == 0:
		return next, config.ErrNoListeners
	}
	return next, nil
}

// apply makes cfg, which differs from the running one in reloadable keys only, the
// running one.
func (n *Node) apply(cfg config.Config) error {
	n.Config = cfg
	if h, ok := n.Log.Handler().(*logHandler); ok {
		h.set.take(cfg.Log)
	}
	n.queue.SetTimes(queue.Times{
		Lifetime: time.Duration(cfg.Queue.Lifetime), DelayNotice: time.Duration(cfg.Queue.DelayNotice),
	})
	n.retention.SetHistory(time.Duration(cfg.Queue.History))
	n.alerting.use(cfg)
	if n.back != nil {
		reach, err := n.Config.Webhooks.Reach()
		if err != nil {
			return err
		}
		n.back.hooks.SetAllow(reach.Allow)
		n.back.rebound()
	}
	if n.front != nil {
		return n.front.reconfigure()
	}
	return nil
}

// reconfigure takes over what a reload can change of the listeners and the server.
func (f *front) reconfigure() error {
	for i, from := range f.listenerFrom {
		setListener(&f.listeners[i], &f.node.Config.Listeners[from])
	}
	return f.server.Reconfigure(submission.Config{
		Listeners: f.listeners, Limits: f.limits(), HideClient: !f.node.Config.Submission.ShowClientAddress,
	})
}

// setListener takes over what a reload can change of a listener.
func setListener(l *submission.Listener, cfg *config.Listener) {
	l.NormalizeBareLF = cfg.NormalizeBareLF
	l.TolerateBrackets = slices.Contains(cfg.Tolerate, "brackets")
	l.Proxies, _ = cfg.Proxies() // validated with the configuration
}
