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
	"postern/relay/upstream"
)

const (
	readEvery    = time.Second
	stale        = 10 // readings that failed, after which all states count as closed
	probeTime    = time.Minute
	leaseTime    = probeTime + 3*callTime // a probe, and the write of its result
	newsTime     = 2 * time.Hour          // that a closing matters to a node that starts: mail waits no longer for it
	retryProbe   = 30 * time.Second       // after a probe that could not be made
	suspectPause = time.Minute            // between two probes of a node because of a suspicion
	trialPause   = 10 * time.Second       // for the answer to a message that is let through
)

// Config configures Breakers. All but Guard must be set.
type Config struct {
	DB    pg.DB
	Node  string
	Log   *slog.Logger
	Guard *panics.Guard // keeps what panics from ending the process; may be nil

	// Backoff is the wait before the first probe, and after each that fails; the last repeats.
	Backoff []time.Duration
	// Probe converses with an upstream as a delivery would, up to MAIL with a sender, "" for
	// none, and returns why no mail can be sent, nil when it can. The error says that the probe
	// could not be made for a reason of ours.
	Probe func(ctx context.Context, upstream, sender string) (*Cause, error)
}

// Deliveries are a node's: *delivery.Engine.
type Deliveries interface {
	// UpstreamChanged is told of an upstream whose breaker has opened or closed, by whatever node.
	UpstreamChanged(upstream string)
	// OneDue makes a recipient due that waits for an upstream, and reports whether there is one.
	OneDue(ctx context.Context, upstream string) (bool, error)
}

// Breakers are the breakers of all upstreams, as a node sees and changes them. Its methods may be
// called from several goroutines, and do not wait for the database.
type Breakers struct {
	cfg   Config
	table table
	every time.Duration // readEvery
	pause time.Duration // trialPause
	mail  Deliveries

	current atomic.Pointer[snapshot]
	wake    chan struct{} // capacity 1
	trials  sync.Map      // of upstreams, a trial each

	mu        sync.Mutex
	news      map[string]news      // of upstreams, to be written
	pending   atomic.Int32         // how many
	suspected map[string]time.Time // when Suspect last began something
	probing   map[string]bool
	probes    sync.WaitGroup
}

// trial lets a message through an open breaker, to see whether mail is taken again.
type trial struct {
	admit   chan struct{} // capacity 1: one may go
	verdict chan *Cause   // capacity 1: why it was refused, nil: it was taken
}

// news is what a node has learned of an upstream, the last of it. The zero news is nothing.
type news struct {
	opens   *Cause
	ends    int64  // the number of the opening that has ended
	suspect string // a sender to probe with
}

// snapshot is what was last read.
type snapshot struct {
	at     time.Time
	states States
}

// New makes Breakers, which learn of states and change them while Run runs.
func New(cfg Config) *Breakers {
	return &Breakers{
		cfg: cfg, table: table{cfg.DB, cfg.Node, cfg.Backoff}, every: readEvery, pause: trialPause, wake: make(chan struct{}, 1),
		news: map[string]news{}, suspected: map[string]time.Time{}, probing: map[string]bool{},
	}
}

// State is the breaker of an upstream, closed if it is not known.
func (b *Breakers) State(upstream string) State {
	s := b.current.Load()
	if s == nil || time.Since(s.at) > stale*b.every {
		return State{}
	}
	return s.states.Of(upstream)
}

// States are those of all upstreams, as last read.
func (b *Breakers) States() States {
	if s := b.current.Load(); s != nil {
		return s.states
	}
	return nil
}

// Admit reports that a message may be sent although the breaker is open: Open or Works tells
// how that ended.
func (b *Breakers) Admit(upstream string) bool {
	select {
	case <-b.trial(upstream).admit:
		return true
	default:
		return false
	}
}

// decide ends a trial, and reports whether there was one.
func (b *Breakers) decide(upstream string, verdict *Cause) bool {
	select {
	case b.trial(upstream).verdict <- verdict:
		return true
	default:
		return false
	}
}

func (b *Breakers) trial(upstream string) (t trial) {
	if v, on := b.trials.Load(upstream); on {
		t = v.(trial)
	}
	return t
}

// Open opens the breaker of an upstream, or keeps it open. It is tried until the database answers,
// or Works says otherwise.
func (b *Breakers) Open(upstream string, c Cause) {
	if !b.decide(upstream, &c) {
		b.tell(upstream, news{opens: &c})
	}
}

// Works says that a transaction with an upstream has ended well: its breaker closes.
func (b *Breakers) Works(upstream string) {
	s := b.State(upstream)
	switch {
	case b.decide(upstream, nil):
	case s.Open:
		b.tell(upstream, news{ends: s.Opening})
	case b.pending.Load() > 0:
		b.tell(upstream, news{})
	}
}

// Suspect has a closed upstream probed that has refused a user's mail for our account, with a sender
// of another user. A probe that is refused for the account too opens the breaker. A node makes at most
// one such probe of an upstream a minute.
func (b *Breakers) Suspect(upstream, sender string) {
	b.mu.Lock()
	soon := time.Since(b.suspected[upstream]) < suspectPause || b.State(upstream).Open || b.news[upstream].opens != nil
	if !soon {
		b.suspected[upstream] = time.Now()
	}
	b.mu.Unlock()
	if !soon {
		b.tell(upstream, news{suspect: sender})
	}
}

func (b *Breakers) tell(upstream string, n news) {
	b.mu.Lock()
	b.news[upstream] = n
	b.pending.Store(int32(len(b.news)))
	b.mu.Unlock()
	b.hurry()
}

func (b *Breakers) hurry() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// Run reads and writes the states, and probes, until ctx ends.
func (b *Breakers) Run(ctx context.Context, mail Deliveries) {
	b.mail = mail
	defer b.probes.Wait()
	tick := time.NewTicker(b.every)
	defer tick.Stop()
	for failing := false; ; {
		err := b.round(ctx)
		if err != nil && !failing && ctx.Err() == nil {
			b.cfg.Log.Warn("cannot read the breakers of upstreams, will retry", "error", err)
		}
		failing = err != nil
		wake := b.wake
		if failing {
			wake = nil // what is new waits as well
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-wake:
		}
	}
}

// round writes what this node has to tell, reads what all know, and begins the probes that are due.
func (b *Breakers) round(ctx context.Context) error {
	if err := b.write(ctx); err != nil {
		return err
	}
	list, err := List(ctx, b.cfg.DB)
	if err != nil {
		return err
	}
	starts := b.current.Load() == nil
	was, now := b.States(), time.Now() // at first nothing: what closed while this node was away is news
	b.current.Store(&snapshot{now, list})
	for _, s := range list {
		old := starts && !s.Open && now.Sub(s.Since) > newsTime
		if before := was.Of(s.Upstream); !old && (before.Open != s.Open || before.Opening != s.Opening) {
			b.mail.UpstreamChanged(s.Upstream)
		}
		if s.Open && !s.paused && s.Prober == "" && !s.NextProbe.After(now) {
			b.begin(s.Upstream, func() error { return b.half(ctx, s) })
		}
	}
	return nil
}

// write writes the news; what fails is kept, where nothing newer has come.
func (b *Breakers) write(ctx context.Context) (failed error) {
	b.mu.Lock()
	all := b.news
	b.news = map[string]news{}
	b.pending.Store(0)
	b.mu.Unlock()
	for upstream, n := range all {
		if err := b.writeOne(ctx, upstream, n); err != nil {
			failed = err
			continue
		}
		delete(all, upstream)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	maps.Copy(all, b.news)
	b.news = all
	b.pending.Store(int32(len(all)))
	return failed
}

func (b *Breakers) writeOne(ctx context.Context, upstream string, n news) (err error) {
	done := false
	switch {
	case n.suspect != "":
		b.begin(upstream, func() error { return b.confirm(ctx, upstream, n.suspect) })
	case n.opens != nil:
		if done, err = b.table.open(ctx, upstream, n.opens); done {
			b.cfg.Log.Warn("upstream opened", "upstream", upstream, "stage", n.opens.Stage, "scope", n.opens.Scope, "reply", n.opens.Reply)
		}
	case n.ends > 0:
		if done, err = b.table.close(ctx, upstream, 0, n.ends); done {
			b.cfg.Log.Info("upstream closed", "upstream", upstream, "by", "delivery")
		}
	}
	return err
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
		if err := b.cfg.Guard.Try("check of an upstream", probe); err != nil {
			b.cfg.Log.Warn("an upstream could not be probed", "upstream", upstream, "error", err)
		}
		b.mu.Lock()
		delete(b.probing, upstream)
		b.mu.Unlock()
		b.hurry()
	})
}

// confirm probes an upstream that is suspected, and opens its breaker if the account is refused.
func (b *Breakers) confirm(ctx context.Context, name, sender string) error {
	c, err := b.probe(ctx, name, sender, false)
	if err == nil && c != nil && c.Scope == upstream.ScopeAccount {
		c.Sender = sender
		b.Open(name, *c)
	}
	return err
}

// half probes an open upstream under the lease, and records the result.
func (b *Breakers) half(ctx context.Context, s State) error {
	lease, err := b.table.take(ctx, s.Upstream, leaseTime)
	if lease == 0 {
		return err
	}
	c, err := b.probe(ctx, s.Upstream, s.Sender, s.past)
	switch {
	case ctx.Err() != nil: // the node stops; another one need not wait for the lease
		return b.table.giveBack(context.WithoutCancel(ctx), s.Upstream, lease, 0)
	case err != nil:
		return errors.Join(err, b.table.giveBack(ctx, s.Upstream, lease, retryProbe))
	case c != nil:
		c.Sender = s.Sender
		return b.table.fail(ctx, s.Upstream, lease, c)
	}
	closed, err := b.table.close(ctx, s.Upstream, lease, 0)
	if closed {
		b.cfg.Log.Info("upstream closed", "upstream", s.Upstream, "by", "probe")
	}
	return err
}

// probe converses with an upstream and then, if mail has to be taken, sends some.
func (b *Breakers) probe(ctx context.Context, upstream, sender string, mail bool) (c *Cause, err error) {
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	err = b.cfg.Guard.Try("probe of an upstream", func() (err error) {
		if c, err = b.cfg.Probe(ctx, upstream, sender); c == nil && err == nil && mail {
			c, err = b.try(ctx, upstream)
		}
		return err
	})
	return c, err
}

// try has one message sent, and another whenever there was no answer for a while: it may have had a
// fault of its own, or another node has it. When none waits, closing the breaker harms nobody.
func (b *Breakers) try(ctx context.Context, upstream string) (*Cause, error) {
	t := trial{make(chan struct{}, 1), make(chan *Cause, 1)}
	b.trials.Store(upstream, t)
	defer b.trials.Delete(upstream)
	for {
		select {
		case t.admit <- struct{}{}:
		default:
		}
		waits, err := b.mail.OneDue(ctx, upstream)
		if err != nil {
			return nil, err
		}
		select {
		case c := <-t.verdict:
			return c, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(b.pause):
			if !waits && len(t.admit) > 0 {
				return nil, nil
			}
		}
	}
}
