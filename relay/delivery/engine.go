package delivery

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/await"
	"postern/internal/panics"
	"postern/internal/share"
	"postern/relay/connect"
	"postern/relay/dkim"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/route"
)

// Queue is what the engine needs of *queue.Queue.
type Queue interface {
	Source
	Ledger
}

// Source gives work.
type Source interface {
	Wait(ctx context.Context) error
	// Asked grows when an operator asks for mail to be tried now.
	Asked() uint64
	// Back returns the ways that other nodes have found to be back since the last call.
	Back() []string
	Claim(ctx context.Context, want queue.ClaimRequest) ([]*queue.Delivery, error)
}

// Ledger takes the outcomes.
type Ledger interface {
	Gate(ctx context.Context, d *queue.Delivery, ns []int, way string) error
	Settle(outcomes ...queue.Outcome)
	Release(d *queue.Delivery, ns []int, wait time.Duration)
	// Recovered says that a destination can be reached again: mail that its suspension
	// deferred is due. way is queue.Way.
	Recovered(way string)
	// OneDue makes one recipient due that waits for one of the ways, and reports whether there is one.
	OneDue(ctx context.Context, ways []string) (bool, error)
}

// Config configures an Engine. Zero values take the defaults named.
type Config struct {
	Queue    Queue
	Routes   route.Resolver
	Breakers Breakers      // nil: each node goes by what it knows itself
	Log      *slog.Logger  // for trouble of the engine itself
	Guard    *panics.Guard // keeps what panics from ending the process; may be nil
	Events   *maillog.Logger

	Budgets Budgets        // nil: upstreams have none
	Connect connect.Config // how conversations begin
	Keys    dkim.Keys      // that sign mail; may be nil
	DKIM    dkim.Mode      // which of them sign mail to MX; the default is dkim.Both

	// Connections and MXConnections bound concurrent connections. Either begins with 5.
	Connections    int           // to one upstream that sets no number of its own: 100
	MXConnections  int           // to the mail hosts of one site, of all nodes together: 20
	Nodes          func() int    // how many nodes there are now; nil: one
	MaxOpen        int           // concurrent connections to all destinations: 500
	PerConnection  int           // messages over one connection: 1,000
	PerTransaction int           // recipients in one transaction: 100
	IdleTime       time.Duration // how long an unused connection is kept: 8 s, since Amazon SES ends it after 10

	// Messages and Memory bound the mail in hand: bodies, and the memory that many
	// recipients and destinations of one message need. Bodies larger than InMemory
	// octets live in files or in the database and count for nothing.
	Messages int   // 10,000
	Memory   int64 // octets: 64 MiB
	InMemory int64 // octets: 1 MiB

	Schedule []time.Duration // waits after each attempt; the last repeats. The default is defaultSchedule.
	Pauses   []time.Duration // how long a destination that worked recently is left alone first. The default is defaultPauses.
	Backoff  []time.Duration // and how long after those. The default is defaultBackoff.
	NoClaim  bool            // only what Take brings

	RecordWays bool // the gate records the way of each dot, not only where a route has several
}

// Defaults is the configuration of an engine that is given nothing.
func Defaults() Config { return Config{}.withDefaults() }

// withDefaults fills what is zero.
func (c Config) withDefaults() Config {
	c.Log, c.Events = cmp.Or(c.Log, slog.New(slog.DiscardHandler)), cmp.Or(c.Events, maillog.New(nil))
	c.DKIM = cmp.Or(c.DKIM, dkim.Both)
	if c.Schedule == nil {
		c.Schedule = defaultSchedule
	}
	if c.Pauses == nil {
		c.Pauses = defaultPauses
	}
	if c.Backoff == nil {
		c.Backoff = defaultBackoff
	}
	fill(&c.Connections, 100)
	fill(&c.MXConnections, 20)
	fill(&c.MaxOpen, 500)
	fill(&c.PerConnection, 1000)
	fill(&c.PerTransaction, 100)
	fill(&c.IdleTime, 8*time.Second)
	fill(&c.Messages, 10_000)
	fill(&c.Memory, 64<<20)
	fill(&c.InMemory, 1<<20)
	return c
}

// fill sets v to def unless it is set.
func fill[T int | int64 | time.Duration](v *T, def T) {
	if *v <= 0 {
		*v = def
	}
}

// Engine delivers. Its methods may be called from several goroutines.
type Engine struct {
	cfg    Config
	dialer *connect.Dialer
	bounds atomic.Pointer[Bounds]
	load   load        // the mail in memory
	slots  *share.Pool // connections, by user, destination and address

	windows windows // connections by server

	// work ends when no new work is begun, hard when conversations are cut off.
	work    context.Context
	endWork context.CancelFunc
	hard    context.Context
	cut     context.CancelFunc
	loops   sync.WaitGroup // dispatcher and claim loop
	workers sync.WaitGroup // connections

	intake     intake
	turnedAway atomic.Int64 // jobs for which a destination had no room
	asked      uint64       // the queue's Asked at the last claim; the claim loop's own
	fullAt     atomic.Int64 // when an upstream last had no room, Unix nanoseconds
	panics     atomic.Int64
	signed     atomic.Int64 // messages that were sent so
	unsigned   tally
	turned     atomic.Int64 // when the dispatcher last ran, Unix nanoseconds
	awaited    sync.Map     // [2]string: two ways; mail that the first would take waits for the second

	mu           sync.Mutex
	destinations map[string]*destination
	active       map[*worker]struct{}
}

// New makes an Engine. Queue, Routes and Connect.Hello must be set.
func New(cfg Config) *Engine {
	cfg = cfg.withDefaults()
	e := &Engine{
		cfg:          cfg,
		load:         newLoad(cfg.Messages, cfg.Memory),
		slots:        share.New(int64(cfg.MaxOpen), slotPart),
		intake:       intake{wake: make(chan struct{}, 1)},
		destinations: map[string]*destination{},
		active:       map[*worker]struct{}{},
	}
	e.bounds.Store(&Bounds{cfg.Connections, cfg.MXConnections, cfg.PerConnection, cfg.PerTransaction, cfg.IdleTime, cfg.Memory, cfg.DKIM})
	e.windows = windows{by: map[string]*window{}, sites: e.sitePlaces}
	e.turned.Store(time.Now().UnixNano())
	cfg.Connect.Sessions = cfg.Budgets
	e.dialer = connect.New(cfg.Connect)
	e.dialer.Slots = e.slots
	e.work, e.endWork = context.WithCancel(context.Background())
	e.hard, e.cut = context.WithCancel(context.Background())
	return e
}

// Start begins the work.
func (e *Engine) Start() {
	keep := func(what string, loop func()) {
		e.loops.Go(func() { e.cfg.Guard.Keep(e.work, "delivery: "+what, loop) })
	}
	keep("giving out work", e.dispatchLoop)
	keep("silent peers", e.yieldLoop)
	if !e.cfg.NoClaim {
		keep("claiming", e.claimLoop)
	}
}

// ErrCut says that conversations were still going on when Shutdown's time ended; they were
// cut off and their recipients settled or released.
var ErrCut = errors.New("deliveries were cut off")

// Shutdown begins no new work and hands back jobs that have not begun. A message whose text
// is being sent is finished, an earlier one is released, until ctx ends: then the rest is
// cut off and the error is ErrCut. When Shutdown returns, every recipient was settled or
// released and every goroutine has ended.
func (e *Engine) Shutdown(ctx context.Context) error {
	e.endWork()
	e.loops.Wait() // no worker is begun after this
	e.releaseIntake()
	for _, d := range e.all() {
		d.handBack()
	}
	e.interruptEarly()

	defer e.cut()
	if await.All(ctx, e.workers.Wait) == nil {
		return nil
	}
	e.cut()
	e.workers.Wait() // every step of a conversation ends with its context
	return ErrCut
}

// closing reports that no new work is begun.
func (e *Engine) closing() bool { return e.work.Err() != nil }

// interruptEarly cuts off the conversations that have not reached the message's text: nothing
// is lost, and they might take minutes.
func (e *Engine) interruptEarly() {
	e.mu.Lock()
	defer e.mu.Unlock()
	for w := range e.active {
		if !w.inText.Load() {
			w.cancel(nil)
		}
	}
}

// all lists the destinations.
func (e *Engine) all() []*destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	return slices.Collect(maps.Values(e.destinations))
}
