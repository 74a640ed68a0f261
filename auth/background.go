package auth

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"postern/auth/throttle"
)

// Run does an Authenticator's background work until ctx ends: it shares failures with the
// other nodes, records logins and their origins, replaces outdated password hashes, and
// deletes old records. It returns when all of that is written or given up. Without it an
// Authenticator answers as well, but knows only the failures of this process.
func (a *Authenticator) Run(ctx context.Context) {
	if a.store == nil {
		return
	}
	share := &rounds{what: "sharing of failed logins", every: throttle.ShareEvery,
		do:   func(ctx context.Context) error { return a.throttle.Share(ctx, a.store.db) },
		last: func(ctx context.Context) error { return a.throttle.Tell(ctx, a.store.db) },
	}
	w := &writing{a.store, a.notes}
	write := &rounds{what: "writing of last logins", every: writeEvery, do: w.round, last: w.round}
	retain := &retention{store: a.store, audit: a.audit, trouble: trouble{what: "deletion of old audit and networks", log: a.log}}
	var all sync.WaitGroup
	for what, run := range map[string]func(context.Context){
		"sharing of failures": func(ctx context.Context) { a.run(ctx, share) },
		"last logins":         func(ctx context.Context) { a.run(ctx, write) },
		"rehashing":           a.rehash,
		"retention":           retain.run,
	} {
		all.Go(func() { a.guard.Keep(ctx, "auth: "+what, func() { run(ctx) }) })
	}
	all.Wait()
}

// rounds is repeated work, done once more at the end for the rest.
type rounds struct {
	what     string // for the log
	every    time.Duration
	do, last func(context.Context) error
}

// run does the rounds until ctx ends, and then the last one.
func (a *Authenticator) run(ctx context.Context, r *rounds) {
	trouble := trouble{what: r.what, log: a.log}
	every(ctx, r.every, func() { trouble.heard(r.do(ctx)) })
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.last)
	defer cancel()
	trouble.heard(r.last(ctx))
}

// every calls do periodically until ctx ends.
func every(ctx context.Context, interval time.Duration, do func()) {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			do()
		}
	}
}

// trouble logs that something stopped working, and that it works again, once each.
type trouble struct {
	what string
	log  *slog.Logger
	on   bool
}

func (t *trouble) heard(err error) {
	switch {
	case errors.Is(err, context.Canceled):
		return // we stop
	case err != nil && !t.on:
		t.log.Warn(t.what+" is interrupted", "error", err)
	case err == nil && t.on:
		t.log.Info(t.what + " goes on")
	}
	t.on = err != nil
}
