package queue

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/await"
	"postern/internal/boot"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/policy/quota"
	"postern/relay/queue/reserve"
	"postern/relay/suppression"
)

// Config configures a Queue; zero durations take the defaults named.
type Config struct {
	EnqueuePool *pgxpool.Pool // commits of accepted mail and notices
	WorkPool    *pgxpool.Pool // claims, settles, heartbeats, sweeps
	Node        string        // this node's name, for traces
	Log         *slog.Logger

	Heartbeat time.Duration // 5 s
	Lease     time.Duration // 30 s, by the database's clock
	Trust     time.Duration // 20 s since the last successful heartbeat was sent
	ReapAfter time.Duration // 15 s after the lease ended
	Poll      time.Duration // 2 s: how late a claim may be without NOTIFY

	Lifetime    time.Duration // 5 days: then a recipient fails
	DelayNotice time.Duration // 4 h
	Gather      time.Duration // 30 s: how long notices about a message are gathered while it is under way
	Budget      time.Duration // 60 s: how long the fate of a commit may stay unknown

	// Moved is called when a different database server answers: connections begun before
	// that should be closed. It must not block.
	Moved func(before time.Time)

	Near        func(quota.Near) // called on one node when a limit is nearly used up; may be nil
	LargeStored func()           // called after the commit of a large message; may be nil

	HoldMade  func(UserHold) // called on every node for a hold, within 5 s; may be nil
	HoldEnded func(UserHold)
	Observer  Observer // receives commits and claims
	Watcher   Watcher  // receives what users send and how it ends; may be nil
	// Suppressed has the addresses that get no more mail: bounces add to it, deliveries remove; may be nil.
	Suppressed *suppression.List
	Guard      *panics.Guard // keeps what panics from ending the process; may be nil

	// Reserve is how many octets of the database's disk are kept for outcomes that must be
	// written when it is full; 0 keeps nothing.
	Reserve int64
	// DiskFree is how many octets are free there; nil where that cannot be asked. It is
	// called for each message.
	DiskFree func() (int64, error)

	StrictGate bool // mark rows before the final dot
	NoNotify   bool // do without LISTEN and NOTIFY (poolers)
}

// Queue is one node's side of the queue.
type Queue struct {
	cfg   Config
	log   *slog.Logger
	clock clock
	times atomic.Pointer[Times] // cfg's, until they are changed

	epochs  *epochs
	commits *commits
	settles *settles
	gates   *gates
	claims  *claims
	notices *notices
	signals *signals
	sweeps  *sweeps
	room    *reserve.Room
	holds   *holds
	inHand  *inHand

	recovered recovered
	faults    faults
	waits     waits

	entry    sync.RWMutex // guards closing against a submission that enters
	closing  bool
	inflight sync.WaitGroup // submissions in Enqueue
	asked    atomic.Uint64  // see Asked
	stop     context.CancelFunc
	stopped  chan struct{} // closed when the background work ends
	loops    sync.WaitGroup
}

// waits are the timeouts of the database's answers; tests shorten them.
type waits struct {
	slowCommit time.Duration // 1 s: then the heartbeat looks whether the server is there
	try        time.Duration // 20 s: then a commit counts as in doubt and is asked after
	// 2 s: then a heartbeat is tried over another connection: only that detects a server
	// whose processes stand still.
	beat time.Duration
	tell time.Duration // 1 min: how often the log says that outcomes cannot be written
}

// faults are where tests make the database fail: at commits of mail and notices, and at
// settles.
type faults struct{ commit, settle pg.Faults }

// dedicated makes a connection on which tests can make the database fail.
func dedicated(pool *pgxpool.Pool, tune string, faults *pg.Faults) *pg.Dedicated {
	d := pg.NewDedicated(pool, tune)
	d.Faults = faults
	return d
}

// Defaults is the configuration of a queue that is given nothing.
func Defaults() Config { return Config{}.withDefaults() }

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	set(&c.Heartbeat, 5*time.Second)
	set(&c.Lease, 30*time.Second)
	set(&c.Trust, 20*time.Second)
	set(&c.ReapAfter, 15*time.Second)
	set(&c.Poll, 2*time.Second)
	set(&c.Lifetime, 5*24*time.Hour)
	set(&c.DelayNotice, 4*time.Hour)
	set(&c.Gather, 30*time.Second)
	set(&c.Budget, time.Minute)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// New makes a Queue; Start begins its work.
//
// It uses the pools' connection settings, and connections of WorkPool for reading stored
// bodies. Commits, settles, claims, the heartbeat and the listener have connections of
// their own, at most seventeen, outside the pools' limits.
func New(cfg Config) *Queue {
	q := &Queue{cfg: cfg.withDefaults(), clock: boot.Clock{}, inHand: newInHand(), stopped: make(chan struct{})}
	q.waits = waits{slowCommit: time.Second, try: 20 * time.Second, beat: 2 * time.Second, tell: time.Minute}
	q.log = q.cfg.Log
	q.times.Store(&Times{q.cfg.Lifetime, q.cfg.DelayNotice})
	q.epochs = newEpochs(q)
	q.commits = newCommits(q)
	q.settles = newSettles(q)
	q.gates = &gates{q: q, s: pg.NewDedicated(cfg.WorkPool, pg.TuneWork), asks: make(chan *gateAsk, 256)}
	q.claims = newClaims(q)
	q.notices = &notices{q: q, s: dedicated(cfg.EnqueuePool, pg.TuneCommit, &q.faults.commit)}
	q.signals = newSignals(q)
	q.epochs.turned.Store(int64(q.clock.Now()))
	q.sweeps = newSweeps(q)
	q.room = reserve.New(reserve.Config{Pool: q.cfg.WorkPool, Log: q.log, Size: q.cfg.Reserve, DiskFree: q.cfg.DiskFree,
		Announce: q.announceFull, Written: q.commits.settled, Look: q.cfg.Heartbeat})
	q.holds = newHolds(q)
	q.recovered = recovered{ways: make(map[string]bool), grown: make(chan struct{}, 1)}
	return q
}

// Start takes an epoch and begins the heartbeat, the committers, the settler, the
// sweep and the listener. ctx bounds only the start.
func (q *Queue) Start(ctx context.Context) error {
	if err := q.epochs.take(ctx); err != nil {
		return fmt.Errorf("start queue: %w", err)
	}
	background, stop := context.WithCancel(context.Background())
	q.stop = stop
	q.commits.start()
	q.settles.done.Go(q.kept(background, "settling", q.settles.run))
	for what, run := range map[string]func(context.Context){
		"the heartbeat": q.epochs.run, "voiding": q.commits.voids.run, "the sweep": q.sweeps.run,
		"the reserve": q.room.Run, "holds": q.holds.run, "listening": q.signals.listen,
		"notifying": q.signals.notify, "recovered destinations": q.wakeRecovered, "the gate": q.gates.run,
	} {
		q.loops.Go(q.kept(background, what, run))
	}
	return nil
}

// kept makes a loop survive panics.
func (q *Queue) kept(ctx context.Context, what string, run func(context.Context)) func() {
	return func() { q.cfg.Guard.Keep(ctx, "queue: "+what, func() { run(ctx) }) }
}

// enter admits a submission unless the queue is closing.
func (q *Queue) enter() bool {
	q.entry.RLock()
	defer q.entry.RUnlock()
	if q.closing {
		return false
	}
	q.inflight.Add(1)
	return true
}

// Close writes the outcomes, hands back the rows that this node still owns, ends the epoch
// and stops. Deliveries must have ended before. ctx bounds it: if the database does not
// answer, the rows are left to another node's reaper. Commits still pending after half of
// the time are left to the database, so that at least the outcomes of other mail are
// written.
func (q *Queue) Close(ctx context.Context) error {
	q.entry.Lock()
	if q.closing {
		q.entry.Unlock()
		return nil
	}
	q.closing = true
	q.entry.Unlock()
	if q.stop == nil {
		return nil
	}
	defer close(q.stopped)
	defer q.stop()
	pending := !q.awaitCommits(ctx)
	if !pending { // else somebody may still submit
		q.commits.stop()
		q.notices.close()
	}
	// A statement that hangs cannot be cancelled: after ctx its rows are the reaper's.
	giveUp := context.AfterFunc(ctx, q.stop)
	close(q.settles.last)
	settled := await.All(ctx, q.settles.done.Wait) == nil
	giveUp()
	q.stop()
	if await.All(ctx, q.loops.Wait) != nil || !settled {
		return fmt.Errorf("close queue: the database does not answer: %w", ctx.Err())
	}
	q.claims.close()
	err := q.sweeps.handBack(ctx)
	if err == nil {
		err = q.epochs.end(ctx)
	}
	if err == nil && pending {
		err = errPending
	}
	if err != nil {
		return fmt.Errorf("close queue: %w", err)
	}
	return nil
}

// errPending says that commits were under way when the queue had to close. Their clients
// were not answered 250; another node delivers those that succeed.
var errPending = errors.New("commits are still pending")

// awaitCommits waits for half of ctx's time until nothing is being submitted.
func (q *Queue) awaitCommits(ctx context.Context) bool {
	if end, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(end)/2)
		defer cancel()
	}
	return await.All(ctx, q.inflight.Wait) == nil
}

// ClaimRequest says how much work is wanted.
type ClaimRequest struct {
	Messages       int      // at most so many deliveries
	PerDestination int      // at most so many recipients of one domain
	Busy           []string // domain keys that are not wanted now
	BusyUsers      []int64  // users whose mail is not wanted now

	// Lines are of mail that is to come in the order of its acceptance: what that waits for
	// (Outcome.WaitsFor).
	Lines [][]string

	alone bool // without other recipients of the same messages
}
