package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

const (
	recoveredRows  = 1000                   // rows that one statement makes due
	recoveredPause = 100 * time.Millisecond // destinations that come back together are asked for together
	recoveredKeys  = 10_000                 // destinations remembered; the mail of others comes by its schedule
)

// Way names where mail goes, as Recovered and the column waits_for have it. upstream is
// Outcome.Upstream: an upstream's name, or "mx" with the domain's key.
func Way(upstream, domainKey string) string {
	if upstream == "mx" {
		return "mx " + domainKey
	}
	return "upstream " + upstream
}

// Recovered makes mail due that was deferred as Suspended for a way which works again. It
// does not wait; while the database is away it is tried again.
func (q *Queue) Recovered(way string) {
	r := &q.recovered
	r.mu.Lock()
	if len(r.ways) < recoveredKeys {
		r.ways[way] = true
	}
	r.mu.Unlock()
	select {
	case r.grown <- struct{}{}:
	default:
	}
}

// recovered holds the ways of which Recovered was told.
type recovered struct {
	mu    sync.Mutex
	ways  map[string]bool
	grown chan struct{} // capacity 1
}

func (r *recovered) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Collect(maps.Keys(r.ways))
	clear(r.ways)
	return list
}

// wakeRecovered works until ctx ends.
func (q *Queue) wakeRecovered(ctx context.Context) {
	var ways []string // that failed before
	for {
		wait := recoveredPause
		if len(ways) > 0 {
			wait = q.cfg.Poll
		} else {
			select {
			case <-ctx.Done():
				return
			case <-q.recovered.grown:
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		ways = append(ways, q.recovered.take()...)
		if err := q.makeDue(ctx, ways); err != nil {
			if ctx.Err() == nil && !q.epochs.suspectIfDown(err) {
				q.log.Warn("queue: mail for destinations that are back waits a little longer", "error", err)
			}
			ways = ways[:min(len(ways), recoveredKeys)]
			continue
		}
		ways = nil
	}
}

// sqlRecovered makes a part of the rows due that wait for one of the ways.
const sqlRecovered = `
with due as materialized (
	select message_id, n from recipient
	where waits_for is not null and waits_for = any($1::text[]) and owner is null and held_at is null and state = 'queued' and next_attempt_at > now()
	order by waits_for, next_attempt_at limit $2
	for update skip locked)
update recipient r set next_attempt_at = now(), waits_for = null
from due where r.message_id = due.message_id and r.n = due.n`

func (q *Queue) makeDue(ctx context.Context, ways []string) error {
	for {
		n, err := q.makeSomeDue(ctx, ways)
		if err != nil {
			return err
		}
		if n > 0 {
			q.announce()
		}
		if n < recoveredRows {
			return nil
		}
	}
}

// makeSomeDue uses the connection of the claims, between two of them.
func (q *Queue) makeSomeDue(ctx context.Context, ways []string) (int64, error) {
	c := q.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := c.s.get(ctx)
	if err != nil {
		return 0, fmt.Errorf("make due: %w", err)
	}
	tag, err := conn.Exec(ctx, sqlRecovered, ways, recoveredRows)
	if err = c.s.end(err); err != nil {
		return 0, fmt.Errorf("make due: %w", err)
	}
	return tag.RowsAffected(), nil
}
