package auth

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"
)

// Run does what an Authenticator does beside its answers, until ctx ends: it shares
// failures with the other nodes, writes down who logged in and whence, hashes outdated
// passwords anew, and deletes what was kept long enough. It returns when all of that is
// written or given up. Without it an Authenticator answers just as well, by what this
// process alone has seen.
func (a *Authenticator) Run(ctx context.Context) {
	if a.store == nil {
		return
	}
	share := &sharing{store: a.store, throttle: a.throttle, last: a.last, trouble: trouble{what: "sharing of failed logins", log: a.log}}
	write := &writing{store: a.store, notes: a.notes, last: a.last, trouble: trouble{what: "writing of last logins", log: a.log}}
	retain := &retention{store: a.store, audit: a.audit, trouble: trouble{what: "deletion of old audit and networks", log: a.log}}
	var all sync.WaitGroup
	for what, run := range map[string]func(context.Context){
		"sharing of failures": share.run, "last logins": write.run, "rehashing": a.rehash, "retention": retain.run,
	} {
		all.Go(func() { a.guard.Keep(ctx, "auth: "+what, func() { run(ctx) }) })
	}
	all.Wait()
}

// every calls do again and again until ctx ends.
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

// atLast is for the last round, when ctx has ended.
func atLast(ctx context.Context, within time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), within)
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
