package queue

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
)

var (
	sqlRecovered = texts.Bind("recovered", "ways", "rows")
	sqlOneDue    = texts.Bind("one_due", "ways")
)

const (
	recoveredRows  = 1000                   // rows that one statement makes due
	recoveredPause = 100 * time.Millisecond // destinations that recover together are handled together
	recoveredAgain = 10 * time.Second       // outcomes under way are in the table by then
	recoveredKeys  = 10_000                 // destinations remembered; the mail of others comes by its schedule
)

// Route is what mail waits for that has no route.
const Route = "route"

// Way names a destination for Recovered and the column waits_for. upstream is
// Outcome.Upstream: an upstream's name, or "mx" with the domain's key.
func Way(upstream, domainKey string) string {
	if upstream == "mx" {
		return "mx " + domainKey
	}
	return "upstream " + upstream
}

// Recovered makes the mail due whose WaitsFor is a way that works again. It does
// not wait; it retries while the database is away.
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

// Back returns the ways, as Way writes them, that other nodes have reported as recovered since
// the last call. It needs NOTIFY.
func (q *Queue) Back() []string {
	r := &q.recovered
	r.mu.Lock()
	defer r.mu.Unlock()
	list := r.back
	r.back = nil
	return list
}

// recovered holds the ways passed to Recovered, and those reported by other nodes.
type recovered struct {
	mu    sync.Mutex
	ways  map[string]bool
	back  []string
	grown chan struct{} // capacity 1
}

// hear notes that another node, or this one, has found a way to be back.
func (r *recovered) hear(way string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.back) < recoveredKeys {
		r.back = append(r.back, way)
	}
}

func (r *recovered) take() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	list := slices.Collect(maps.Keys(r.ways))
	clear(r.ways)
	return list
}

// look is the second look for mail that waits for ways.
type look struct {
	ways []string
	at   time.Time
}

// wakeRecovered works until ctx ends. It looks twice for each way: at the first look an
// outcome that defers mail for it may not be in the table yet.
func (q *Queue) wakeRecovered(ctx context.Context) {
	var first []string
	var second []look // the earliest first
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for soon := false; ; { // whether the timer is set for a first look, which more ways do not put off
		select {
		case <-ctx.Done():
			return
		case <-q.recovered.grown:
			if !soon {
				soon = true
				timer.Reset(recoveredPause)
			}
			continue
		case <-timer.C:
		}
		now, n := time.Now(), 0
		first = append(first, q.recovered.take()...)
		ways := slices.Clone(first)
		for ; n < len(second) && !second[n].at.After(now); n++ {
			ways = append(ways, second[n].ways...)
		}
		if err := q.makeDue(ctx, ways); err != nil {
			if ctx.Err() == nil && !q.epochs.suspectIfDown(err) {
				q.log.Warn("queue: cannot make mail due for recovered destinations, will retry", "error", err)
			}
			first, soon = first[:min(len(first), recoveredKeys)], true
			timer.Reset(q.cfg.Poll)
			continue
		}
		if second = second[n:]; len(first) > 0 {
			second = append(second, look{first, now.Add(recoveredAgain)})
		}
		if first, soon = nil, false; len(second) > 0 {
			timer.Reset(time.Until(second[0].at))
		}
	}
}

func (q *Queue) makeDue(ctx context.Context, ways []string) error {
	tell := ways
	if q.cfg.NoNotify {
		tell = nil
	}
	for ; ; tell = nil {
		n, err := q.makeSomeDue(ctx, tell, sqlRecovered, ways, recoveredRows)
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

// OneDue makes one recipient due that waits for one of the ways, most likely for this node, and
// reports whether there is one.
func (q *Queue) OneDue(ctx context.Context, ways []string) (bool, error) {
	n, err := q.makeSomeDue(ctx, nil, sqlOneDue, ways)
	q.wake()
	return n > 0, err
}

// sqlTellBack tells the other nodes which ways have recovered.
const sqlTellBack = `select pg_notify('` + channel + `', '` + payloadBack + `' || way) from unnest($1::text[]) way
	where exists (select from recipient where waits_for is not null and waits_for = way and owner is null and held_at is null)`

// makeSomeDue uses the connection of the claims, between two of them. The other nodes are told of
// ways first, or they would claim the mail while they still spare its destination.
func (q *Queue) makeSomeDue(ctx context.Context, tell []string, sql string, args ...any) (int64, error) {
	c := q.claims
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	conn, err := c.s.Get(ctx)
	if err != nil {
		return 0, fmt.Errorf("make due: %w", err)
	}
	if len(tell) > 0 {
		if _, err := conn.Exec(ctx, sqlTellBack, tell); err != nil {
			return 0, fmt.Errorf("make due: %w", c.s.End(err))
		}
	}
	tag, err := conn.Exec(ctx, sql, args...)
	if err = c.s.End(err); err != nil {
		return 0, fmt.Errorf("make due: %w", err)
	}
	return tag.RowsAffected(), nil
}
