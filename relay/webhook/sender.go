package webhook

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/internal/await"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/feed"
	"postern/relay/seal"
)

var (
	sqlLease   = texts.Bind("lease", "owner", "more", "span")
	sqlLeased  = texts.Bind("leased", "owner")
	sqlRelease = texts.Bind("release", "owner")
)

const (
	lookEvery = time.Second
	leaseTime = 15 * time.Second // a dead node's webhooks are sent for by another after it
	takeMost  = 4                // webhooks that a node takes at a time, so that all nodes get some
)

// Config configures a Sender.
type Config struct {
	DB     pg.DB        // a pool of its own: mail does not wait for it
	Sealer *seal.Sealer // nil: no secret opens
	Reach  Reach
	Log    *slog.Logger
	Guard  *panics.Guard // keeps what panics from ending the process; may be nil
}

// Sender sends for the webhooks that it leases.
type Sender struct {
	cfg   Config
	owner uuid.UUID
	span  time.Duration // leaseTime

	reach   atomic.Pointer[Reach]
	recent  *feed.Recent        // pages, for all workers
	newest  atomic.Pointer[end] // of the feed when it was last looked at
	working map[int64]*worker   // of Run alone
	loops   sync.WaitGroup

	mu    sync.Mutex
	tries map[Tries]int64
}

// end is the end of the feed.
type end struct {
	at   feed.Cursor
	time time.Time // what happened before is in front of it, or was not committed
}

// Tries are counted by webhook and result.
type Tries struct {
	Webhook string // its name
	Result  string // taken, failed or given_up
}

// Results of tries.
const (
	Taken   = "taken"
	Failed  = "failed"
	GivenUp = "given_up"
)

// NewSender makes a Sender, which works while Run runs.
func NewSender(cfg Config) *Sender {
	s := &Sender{cfg: cfg, owner: uuid.New(), span: leaseTime, recent: feed.NewRecent(), working: map[int64]*worker{}, tries: map[Tries]int64{}}
	s.reach.Store(&cfg.Reach)
	return s
}

// SetAllow changes which endpoints need neither https nor a public address, for connections that are made from now on.
func (s *Sender) SetAllow(a Allow) {
	r := *s.reach.Load()
	r.Allow = a
	s.reach.Store(&r)
}

// Count is how many tries of each webhook had each result.
func (s *Sender) Count() map[Tries]int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[Tries]int64, len(s.tries))
	for t, n := range s.tries {
		counts[t] = n
	}
	return counts
}

func (s *Sender) count(name, result string, n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tries[Tries{name, result}] += int64(n)
}

// Run sends until ctx ends; requests that have begun have 3 seconds more.
func (s *Sender) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	defer s.end()
	for failing := false; ; {
		err := s.round(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			s.cfg.Log.Warn("webhooks cannot be read, will retry", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// round takes leases, and begins and ends workers.
func (s *Sender) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	if _, err := s.cfg.DB.Exec(ctx, sqlLease, s.owner, takeMost, s.span); err != nil {
		return fmt.Errorf("lease webhooks: %w", err)
	}
	rows, err := s.cfg.DB.Query(ctx, sqlLeased, s.owner)
	var list []*hook
	if err == nil {
		list, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (*hook, error) {
			var h hook
			err := row.Scan(&h.id, &h.userID, &h.name, &h.url, &h.kinds, &h.Concurrency, &h.PerMinute, &h.sealed, &h.both, &h.due)
			return &h, err
		})
	}
	if err != nil {
		return fmt.Errorf("read leased webhooks: %w", err)
	}
	if len(list) > 0 {
		if err := s.look(ctx); err != nil {
			return err
		}
	}
	s.assign(list)
	return nil
}

// look looks for the end of the feed.
func (s *Sender) look(ctx context.Context) (err error) {
	e := end{time: time.Now()}
	held, err := feed.Hold(ctx, s.cfg.DB)
	if err != nil {
		return err
	}
	if held != nil && held.Since.Before(e.time) {
		e.time = held.Since
	}
	if e.at, err = feed.Newest(ctx, s.cfg.DB); err == nil {
		s.newest.Store(&e)
	}
	return err
}

// assign gives each leased webhook a worker, and ends the others.
func (s *Sender) assign(list []*hook) {
	left := make(map[int64]bool, len(s.working))
	for id, w := range s.working {
		left[id] = true
		if w.over() {
			delete(s.working, id)
		}
	}
	for _, h := range list {
		delete(left, h.id)
		w := s.working[h.id]
		if w == nil {
			var ctx context.Context
			w = &worker{s: s, wake: make(chan struct{}, 1), ended: make(chan struct{}), pace: pace{last: time.Now()}}
			ctx, w.stop = context.WithCancel(context.Background())
			w.hook.Store(h)
			s.working[h.id] = w
			for _, result := range []string{Taken, Failed, GivenUp} {
				s.count(h.name, result, 0)
			}
			s.loops.Go(func() {
				defer close(w.ended)
				s.cfg.Guard.Keep(ctx, "webhook "+h.name, func() { w.run(ctx) })
			})
			continue
		}
		w.hook.Store(h)
		w.hurry()
	}
	for id := range left {
		if w := s.working[id]; w != nil {
			w.stop()
		}
	}
}

// end ends all workers, and gives the leases back.
func (s *Sender) end() {
	for _, w := range s.working {
		w.stop()
	}
	ctx, cancel := context.WithTimeout(context.Background(), grace+callTime)
	defer cancel()
	if await.All(ctx, s.loops.Wait) != nil {
		return // the leases end by themselves
	}
	_, _ = s.cfg.DB.Exec(ctx, sqlRelease, s.owner) // the same
}
