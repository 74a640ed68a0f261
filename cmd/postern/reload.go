package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"postern/internal/panics"
	"postern/relay/delivery"
	"postern/relay/queue"
	"postern/relay/submission"
)

// reloadable are the keys that a reload applies; docs/operate.md says from when on
// each acts. All others need a restart.
var reloadable = map[string]bool{
	"drain_time": true,

	"listener.normalize_bare_lf": true,
	"listener.tolerate":          true,
	"listener.proxy_protocol":    true,

	"submission.connections":             true,
	"submission.connections_per_address": true,
	"submission.commands":                true,
	"submission.bad_commands":            true,
	"submission.auth_failures":           true,
	"submission.recipients":              true,
	"submission.message_size":            true,
	"submission.header_size":             true,
	"submission.session_time":            true,
	"submission.idle_time":               true,
	"submission.min_data_rate":           true,
	"submission.memory":                  true,
	"submission.spool":                   true,
	"submission.show_client_address":     true,

	"queue.lifetime":     true,
	"queue.delay_notice": true,
	"queue.history":      true,

	"delivery.connections":             true,
	"delivery.memory":                  true,
	"delivery.idle_time":               true,
	"delivery.messages_per_connection": true,

	"log.format": true,
	"log.level":  true,
}

// reloadTime bounds a reload, for the file system may hang.
const reloadTime = 30 * time.Second

// reload reads the configuration again and applies what can be. When anything is wrong
// with it, nothing changes. Files are read, nobody is asked over the network.
func (n *node) reload(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, reloadTime)
	defer cancel()
	n.supervisor.reloading()
	defer func() { n.supervisor.ready(n.summary()) }()
	next, err := inTime(ctx, n.reread)
	if err == nil && n.reloadCertificates != nil {
		_, err = inTime(ctx, func() (struct{}, error) { return struct{}{}, n.reloadCertificates() })
	}
	if err != nil {
		n.log.Error("the configuration is not reloaded, the node runs on as before", "error", oneLine(err.Error()))
		return
	}
	running := n.cfg
	running.Listeners = slices.Clone(n.cfg.Listeners)
	applied, restart := adopt(&running, next)
	if err := n.apply(running); err != nil { // a defect: what can be wrong was checked before
		n.log.Error("the configuration is applied in part: restart the node", "error", err)
		return
	}
	n.log.Info("configuration reloaded", "applied", strings.Join(applied, ", "), "needs_restart", strings.Join(restart, ", "))
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
		return none, fmt.Errorf("its files are not read to the end: %w", context.Cause(ctx))
	}
}

var errNoListeners = errors.New("the configuration has no [[listener]]; 'serve --only delivery' needs none")

// reread is the configuration as it is now, wholly checked.
func (n *node) reread() (config, error) {
	next, found, err := n.readAgain()
	switch {
	case err != nil:
		return next, err
	case !found:
		return next, errors.New("the configuration file is gone")
	case n.server != nil && len(next.Listeners) == 0:
		return next, errNoListeners
	}
	return next, nil
}

// apply makes cfg, which differs from the running one in reloadable keys only, the
// running one.
func (n *node) apply(cfg config) error {
	n.cfg = cfg
	if h, ok := n.log.Handler().(*logHandler); ok {
		h.set.take(cfg.Log)
	}
	n.queue.SetTimes(queue.Times{
		Lifetime: time.Duration(cfg.Queue.Lifetime), DelayNotice: time.Duration(cfg.Queue.DelayNotice),
	})
	n.retention.SetHistory(time.Duration(cfg.Queue.History))
	if n.engine != nil {
		d := cfg.Delivery
		n.engine.Rebound(delivery.Bounds{
			Connections: d.Connections, MXConnections: d.Connections, PerConnection: d.MessagesPerConn,
			IdleTime: time.Duration(d.IdleTime), Memory: int64(d.Memory),
		})
	}
	if n.server == nil {
		return nil
	}
	for i, from := range n.listenerFrom {
		n.setListener(&n.listeners[i], &cfg.Listeners[from])
	}
	return n.server.Reconfigure(submission.Config{
		Listeners: n.listeners, Limits: n.submissionLimits(), HideClient: !cfg.Submission.ShowClientAddress,
	})
}

// setListener takes over what a reload can change of a listener.
func (n *node) setListener(l *submission.Listener, cfg *listenerConfig) {
	l.NormalizeBareLF = cfg.NormalizeBareLF
	l.TolerateBrackets = slices.Contains(cfg.Tolerate, "brackets")
	l.Proxies, _ = cfg.proxies() // validated with the configuration
}

// adopt takes the reloadable keys of next into running, and names the keys that differ:
// those that it took, and those that need a restart.
func adopt(running *config, next config) (applied, restart []string) {
	a := adoption{}
	a.table("", reflect.ValueOf(running).Elem(), reflect.ValueOf(&next).Elem())
	return a.applied, a.restart
}

type adoption struct{ applied, restart []string }

// table compares two tables of the configuration by their keys.
func (a *adoption) table(prefix string, have, want reflect.Value) {
	for i := range have.NumField() {
		key := prefix + have.Type().Field(i).Tag.Get("toml")
		switch h, w := have.Field(i), want.Field(i); {
		case h.Kind() == reflect.Struct:
			a.table(key+".", h, w)
		case key == "listener":
			a.listeners(h.Interface().([]listenerConfig), w.Interface().([]listenerConfig))
		default:
			a.value(key, h, w)
		}
	}
}

func (a *adoption) value(key string, have, want reflect.Value) {
	if have.Kind() == reflect.Slice && have.Len()+want.Len() == 0 || reflect.DeepEqual(have.Interface(), want.Interface()) {
		return
	}
	if !reloadable[key] {
		a.note(&a.restart, key)
		return
	}
	have.Set(want)
	a.note(&a.applied, key)
}

// note lists a key once: several listeners may differ in it.
func (a *adoption) note(list *[]string, key string) {
	if !slices.Contains(*list, key) {
		*list = append(*list, key)
	}
}

// listeners compares those of equal address and tls. One that has no counterpart, or
// an address that is there more often than before, needs a restart.
func (a *adoption) listeners(have, want []listenerConfig) {
	type socket struct{ address, tls string }
	left := map[socket][]int{}
	for i, l := range have {
		s := socket{l.Address, l.TLS}
		left[s] = append(left[s], i)
	}
	same := len(have) == len(want)
	for i := range want {
		s := socket{want[i].Address, want[i].TLS}
		if len(left[s]) == 0 {
			same = false
			continue
		}
		at := left[s][0]
		left[s] = left[s][1:]
		a.table("listener.", reflect.ValueOf(&have[at]).Elem(), reflect.ValueOf(&want[i]).Elem())
	}
	if !same {
		a.note(&a.restart, "listener")
	}
}
