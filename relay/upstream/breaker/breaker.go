package breaker

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/panics"
	"postern/internal/pg"
)

const (
	readEvery  = time.Second
	stale      = 10 // readings that failed, after which all states count as closed
	probeTime  = time.Minute
	leaseTime  = probeTime + 3*callTime // a probe, and the write of its result
	retryProbe = 30 * time.Second       // after a probe that could not be made
	doubtPause = time.Minute            // between two probes of a node because of a suspicion
)

// Config configures Breakers. All but Log, Guard and Backoff must be set.
type Config struct {
	DB    pg.DB
	Node  string
	Log   *slog.Logger  // nil: none
	Guard *panics.Guard // keeps what panics from ending the process; may be nil

	// Backoff is the wait before the first probe, and after each that fails; the last repeats.
	Backoff []time.Duration
	// Probe converses with an upstream as a delivery would, up to MAIL with a sender, "" for
	// none, and returns why no mail can be sent, nil when it can. The error says that the probe
	// could not be made for a reason of ours.
	Probe func(ctx context.Context, upstream, sender string) (*Cause, error)
	// Recovered is called when this node has closed a breaker, and the others know.
	Recovered func(upstream string)
}

// Breakers are the breakers of all upstreams, as a node sees and changes them. Its methods may be
// called from several goroutines, and wait for no database.
type Breakers struct {
	cfg   Config
	table table
	every time.Duration // readEvery

	current atomic.Pointer[snapshot]
	wake    chan struct{} // capacity 1

	mu       sync.Mutex
	news     atomic.Int32 // how many opens and works there are
	opens    map[string]Cause
	works    map[string]int64     // the opening that has ended
	doubts   map[string]time.Time // when Suspect last began something
	suspects map[string]string    // the senders to probe with
	probing  map[string]bool
	probes   sync.WaitGroup
}

// snapshot is what was last read.
type snapshot struct {
	at     time.Time
	states map[string]State
}

// New makes Breakers, which learn of states and change them while Run runs.
func New(cfg Config) *Breakers {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Backoff == nil {
		cfg.Backoff = []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute, 5 * time.Minute, 10 * time.Minute}
	}
	return &Breakers{
		cfg: cfg, table: table{cfg.DB, cfg.Node, cfg.Backoff}, every: readEvery, wake: make(chan struct{}, 1),
		opens: map[string]Cause{}, works: map[string]int64{}, doubts: map[string]time.Time{},
		suspects: map[string]string{}, probing: map[string]bool{},
	}
}

// State is the breaker of an upstream, closed if it is not known.
func (b *Breakers) State(upstream string) State {
	s := b.current.Load()
	if s == nil || time.Since(s.at) > stale*b.every {
		return State{}
	}
	return s.states[upstream]
}

// States are those of all upstreams.
func (b *Breakers) States() (list []State) {
	if s := b.current.Load(); s != nil {
		for _, state := range s.states {
			list = append(list, state)
		}
	}
	return list
}

// Open opens the breaker of an upstream. It is tried until the database answers, or Works says
// otherwise.
func (b *Breakers) Open(upstream string, c Cause) {
	b.mu.Lock()
	b.opens[upstream] = c
	b.count()
	b.mu.Unlock()
	b.hurry()
}

// Works says that a transaction with an upstream has ended well: its breaker closes.
func (b *Breakers) Works(upstream string) {
	s := b.State(upstream)
	if !s.Open && b.news.Load() == 0 { // as a rule
		return
	}
	b.mu.Lock()
	delete(b.opens, upstream)
	if s.Open {
		b.works[upstream] = s.Opening
	}
	b.count()
	b.mu.Unlock()
	b.hurry()
}

// count runs with mu held.
func (b *Breakers) count() { b.news.Store(int32(len(b.opens) + len(b.works))) }

func (b *Breakers) hurry() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Suspect has a closed upstream probed with a sender that is not of the user whose mail it has
// refused for our account; a probe that is refused for the account as well opens the breaker.
// A node makes one such probe a minute.
func (b *Breakers) Suspect(upstream, sender string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if time.Since(b.doubts[upstream]) >= doubtPause && !b.State(upstream).Open {
		b.doubts[upstream], b.suspects[upstream] = time.Now(), sender
		b.hurry()
	}
}

// Run reads and writes the states, and probes, until ctx ends. changed is called for an upstream
// whose breaker has opened or closed, by whatever node.
func (b *Breakers) Run(ctx context.Context, changed func(upstream string)) {
	defer b.probes.Wait()
	tick := time.NewTicker(b.every)
	defer tick.Stop()
	for failing := false; ; {
		err := b.round(ctx, changed)
		if err != nil && !failing && ctx.Err() == nil {
			b.cfg.Log.Warn("the breakers of upstreams are not known, will try again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			continue
		case <-b.wake:
		}
		if failing { // what is new waits as well
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	}
}

// round writes what this node has to tell, reads what all know, and begins the probes that are due.
func (b *Breakers) round(ctx context.Context, changed func(string)) error {
	if err := b.write(ctx); err != nil {
		return err
	}
	list, err := List(ctx, b.cfg.DB)
	if err != nil {
		return err
	}
	was, now := b.current.Load(), &snapshot{time.Now(), make(map[string]State, len(list))}
	for _, s := range list {
		now.states[s.Upstream] = s
	}
	b.current.Store(now)
	for _, s := range list {
		if was == nil && s.Open || was != nil && (was.states[s.Upstream].Open != s.Open || was.states[s.Upstream].Opening != s.Opening) {
			changed(s.Upstream)
		}
		if s.Open && !s.paused && s.Prober == "" && !s.NextProbe.After(now.at) {
			b.begin(s.Upstream, func() error { return b.half(ctx, s) })
		}
	}
	b.mu.Lock()
	suspects := maps.Clone(b.suspects)
	clear(b.suspects)
	b.mu.Unlock()
	for upstream, sender := range suspects {
		b.begin(upstream, func() error { return b.confirm(ctx, upstream, sender) })
	}
	return nil
}

// write writes the changes; those that fail are kept.
func (b *Breakers) write(ctx context.Context) error {
	b.mu.Lock()
	opens, works := b.opens, b.works
	b.opens, b.works = map[string]Cause{}, map[string]int64{}
	b.count()
	b.mu.Unlock()
	var failed error
	for upstream, opening := range works {
		closed, err := b.table.close(ctx, upstream, 0, opening)
		if err != nil {
			failed = err
			continue
		}
		delete(works, upstream)
		if closed {
			b.closed(ctx, upstream, "delivery")
		}
	}
	for upstream, c := range opens {
		opened, err := b.table.open(ctx, upstream, &c)
		if err != nil {
			failed = err
			continue
		}
		delete(opens, upstream)
		if opened {
			b.cfg.Log.Warn("upstream opened", "upstream", upstream, "stage", c.Stage, "scope", c.Scope, "reply", c.Reply)
		}
	}
	if failed != nil {
		b.keep(opens, works)
	}
	return failed
}

// keep puts back what could not be written, where nothing newer has come.
func (b *Breakers) keep(opens map[string]Cause, works map[string]int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for upstream, opening := range works {
		if _, newer := b.opens[upstream]; !newer {
			b.works[upstream] = max(opening, b.works[upstream])
		}
	}
	for upstream, c := range opens {
		_, opened := b.opens[upstream]
		if _, works := b.works[upstream]; !opened && !works {
			b.opens[upstream] = c
		}
	}
	b.count()
}

// closed follows a breaker that this node has closed: once the others have read that, the mail is
// to come. Until then they would let it wait once more.
func (b *Breakers) closed(ctx context.Context, upstream, by string) {
	b.cfg.Log.Info("upstream closed", "upstream", upstream, "by", by)
	b.probes.Go(func() {
		select {
		case <-time.After(b.every * 3 / 2):
		case <-ctx.Done():
		}
		b.cfg.Recovered(upstream)
	})
}

// begin probes an upstream in the background, unless this node does so already.
func (b *Breakers) begin(upstream string, probe func() error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.probing[upstream] {
		return
	}
	b.probing[upstream] = true
	b.probes.Go(func() {
		if err := probe(); err != nil {
			b.cfg.Log.Warn("an upstream could not be probed", "upstream", upstream, "error", err)
		}
		b.mu.Lock()
		delete(b.probing, upstream)
		b.mu.Unlock()
		b.hurry()
	})
}

// confirm looks into a suspicion.
func (b *Breakers) confirm(ctx context.Context, upstream, sender string) error {
	c, err := b.probe(ctx, upstream, sender)
	if err == nil && c != nil && c.Scope == account {
		c.Sender = sender
		b.Open(upstream, *c)
	}
	return err
}

// half probes an open upstream under the lease, and records the result.
func (b *Breakers) half(ctx context.Context, s State) error {
	lease, err := b.table.take(ctx, s.Upstream, leaseTime)
	if lease == 0 {
		return err
	}
	c, err := b.probe(ctx, s.Upstream, s.Sender)
	switch {
	case ctx.Err() != nil: // the node stops; another one need not wait for the lease
		return b.table.giveBack(context.WithoutCancel(ctx), s.Upstream, lease, 0)
	case err != nil:
		return errors.Join(err, b.table.giveBack(ctx, s.Upstream, lease, retryProbe))
	case c != nil:
		return b.table.fail(ctx, s.Upstream, lease, c)
	}
	closed, err := b.table.close(ctx, s.Upstream, lease, 0)
	if closed {
		b.closed(ctx, s.Upstream, "probe")
	}
	return err
}

func (b *Breakers) probe(ctx context.Context, upstream, sender string) (c *Cause, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	err = b.cfg.Guard.Try("probe of an upstream", func() (err error) {
		c, err = b.cfg.Probe(ctx, upstream, sender)
		return err
	})
	return c, err
}
