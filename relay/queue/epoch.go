package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

// clock measures for how long an epoch is trusted: boot.Clock, or one of a test.
type clock interface{ Now() time.Duration }

// lease is this node's knowledge of its epoch.
type lease struct {
	epoch int64
	sent  time.Duration // when the last successful heartbeat was sent, by the boot clock
}

// epochs keeps this node's epoch: takes it, renews it, decides whether it can still be
// trusted, and takes a new one when it was lost.
type epochs struct {
	q       *Queue
	s       *pg.Dedicated
	current atomic.Pointer[lease] // nil: none
	trouble atomic.Pointer[error] // why the database is not answering, nil when it is
	hurry   chan struct{}         // asks for a heartbeat now
	lost    atomic.Int64          // epochs
	mu      sync.Mutex            // guards s: the heartbeat and the farewell
	turned  atomic.Int64          // when the heartbeat's loop last came round, by the boot clock
	server  time.Time             // the start of the server that last answered a heartbeat
	found   time.Time             // of the one that s is connected to
}

var (
	sqlTakeEpoch = texts.Bind("take_epoch", "name", "lease", "strict")
	sqlRival     = texts.Bind("rival", "name", "epoch")
	sqlHeartbeat = texts.Bind("heartbeat", "epoch", "lease")
	sqlEndEpoch  = texts.Bind("end_epoch", "epoch")
	sqlGate      = texts.Bind("gate", "message_id", "n", "epoch", "way")
)

func newEpochs(q *Queue) *epochs {
	e := &epochs{q: q, s: pg.NewDedicated(q.cfg.WorkPool, pg.TuneWork), hurry: make(chan struct{}, 1)}
	e.s.OnConnect = func(ctx context.Context, conn *pgx.Conn) (err error) {
		e.found, err = pg.ServerStart(ctx, conn)
		return err
	}
	return e
}

// answered notes which server an answer came from. Calls begun with another one will never
// be answered, although their connections may stay open for ever.
func (e *epochs) answered() {
	if e.found.Equal(e.server) {
		return
	}
	first := e.server.IsZero()
	e.server = e.found
	if first {
		return
	}
	e.q.log.Warn("queue: another database server answers, closing connections to the former")
	if e.q.cfg.Moved != nil {
		e.q.cfg.Moved(e.s.Begun)
	}
}

func (e *epochs) take(ctx context.Context) error {
	sent := e.q.clock.Now()
	conn, err := e.s.Get(ctx)
	if err != nil {
		return err
	}
	var epoch int64
	err = conn.QueryRow(ctx, sqlTakeEpoch, e.q.cfg.Node, e.q.cfg.Lease, e.q.cfg.StrictGate).Scan(&epoch)
	if err = e.s.End(err); err != nil {
		e.s.Drop()
		return fmt.Errorf("take epoch: %w", err)
	}
	e.answered()
	e.current.Store(&lease{epoch: epoch, sent: sent})
	return nil
}

// valid returns the epoch if it is trusted now, else 0.
func (e *epochs) valid() int64 {
	l := e.current.Load()
	if l == nil || e.q.clock.Now()-l.sent >= e.q.cfg.Trust {
		return 0
	}
	return l.epoch
}

// run beats until ctx ends. While the database is in trouble it tries more often,
// so that the node is back soon after it.
func (e *epochs) run(ctx context.Context) {
	lost := int64(0) // the epoch that was lost, until there is a new one
	for {
		e.turned.Store(int64(e.q.clock.Now()))
		wait := e.q.cfg.Heartbeat
		if e.down() != nil {
			wait = min(wait, 500*time.Millisecond)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-e.hurry:
			timer.Stop()
		}
		lost = e.step(ctx, lost)
	}
}

// step beats once, or tries to replace a lost epoch; it returns the epoch that is lost.
func (e *epochs) step(ctx context.Context, lost int64) int64 {
	e.mu.Lock()
	defer e.mu.Unlock()
	patience := max(e.q.cfg.Trust/2, time.Second)
	// The database's URL says how long each of its servers may take, and may say hours.
	ctx, cancel := context.WithTimeout(ctx, 3*patience)
	defer cancel()
	if lost != 0 {
		return e.replace(ctx, lost)
	}
	err := e.beat(ctx, min(e.q.waits.beat, patience))
	var connect *pg.ConnectError
	if pg.IsDown(err) && !errors.As(err, &connect) && !errors.Is(err, errEpochLost) {
		err = e.beat(ctx, patience) // over a new connection: the old one may be from before a restart
	}
	if !errors.Is(err, errEpochLost) {
		e.report(err)
		return 0
	}
	l := e.current.Swap(nil)
	e.lost.Add(1)
	e.q.log.Error("queue: this node lost its epoch and stops delivering under it", "epoch", l.epoch)
	return e.replace(ctx, l.epoch)
}

// errRival keeps a node from taking a new epoch while the rival lives.
var errRival = errors.New("another process runs under the node name")

// replace takes a new epoch unless another living process uses this node's name.
func (e *epochs) replace(ctx context.Context, lost int64) int64 {
	ctx, cancel := context.WithTimeout(ctx, max(e.q.cfg.Trust/2, time.Second))
	defer cancel()
	conn, err := e.s.Get(ctx)
	rival := false
	if err == nil {
		err = e.s.End(conn.QueryRow(ctx, sqlRival, e.q.cfg.Node, lost).Scan(&rival))
	}
	if err == nil && rival {
		err = fmt.Errorf("%w %q", errRival, e.q.cfg.Node)
	}
	if err == nil {
		err = e.take(ctx)
	}
	e.report(err)
	if err != nil {
		return lost
	}
	e.q.log.Warn("queue: this node took a new epoch", "epoch", e.current.Load().epoch, "lost", lost)
	e.q.wake()
	return 0
}

// beat renews the lease, over a new connection if there is none. The database then has a
// bounded time to answer.
func (e *epochs) beat(ctx context.Context, patience time.Duration) error {
	l := e.current.Load()
	sent := e.q.clock.Now()
	conn, err := e.s.Get(ctx)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tag, err := conn.Exec(ctx, sqlHeartbeat, l.epoch, e.q.cfg.Lease)
	if err = e.s.End(err); err != nil {
		e.s.Drop()
		return fmt.Errorf("heartbeat: %w", err)
	}
	e.answered()
	if tag.RowsAffected() == 0 {
		return errEpochLost
	}
	e.current.Store(&lease{epoch: l.epoch, sent: sent})
	return nil
}

// end gives the epoch up; the caller has handed its rows back.
func (e *epochs) end(ctx context.Context) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	l := e.current.Swap(nil)
	if l == nil {
		return nil
	}
	conn, err := e.s.Get(ctx)
	if err == nil {
		_, err = conn.Exec(ctx, sqlEndEpoch, l.epoch)
		err = e.s.End(err)
	}
	e.s.Close()
	return err
}

// report notes the latest state of the database, trouble or nil, and logs a change.
func (e *epochs) report(err error) {
	was := e.trouble.Load()
	switch {
	case err == nil && was != nil:
		e.trouble.Store(nil)
		if errors.Is(*was, errRival) {
			e.q.log.Info("queue: the other process with this node name has ended")
		} else {
			e.q.log.Info("queue: the database answers again")
		}
	case err != nil && !errors.Is(err, context.Canceled):
		e.trouble.Store(&err)
		if was == nil {
			e.q.log.Error(troubleText(err), "error", err)
			e.lookNow()
		}
	}
}

// troubleText tells an operator what to do.
func troubleText(err error) string {
	if errors.Is(err, errRival) {
		return "queue: nothing is accepted or delivered here: give each process a node name of its own"
	}
	return "queue: the database is not answering"
}

// lookNow makes the next heartbeat come immediately.
func (e *epochs) lookNow() {
	select {
	case e.hurry <- struct{}{}:
	default:
	}
}

// suspect is report for trouble on a connection other than the heartbeat's. A connection
// that could not be made is the database's trouble; one that broke may only be a leftover
// from before a restart, so the heartbeat looks immediately.
func (e *epochs) suspect(err error) {
	e.q.room.Heard(err)
	var connect *pg.ConnectError
	if errors.As(err, &connect) {
		e.report(err)
		return
	}
	e.lookNow()
}

// suspectIfDown is suspect for errors that may be the statement's own; it reports that this
// one is the database's.
func (e *epochs) suspectIfDown(err error) bool {
	down := pg.IsDown(err)
	if down {
		e.suspect(err)
	}
	return down
}

func (e *epochs) down() error {
	if err := e.trouble.Load(); err != nil {
		return *err
	}
	return nil
}

// Suspect takes an error that others had with this database. It reports whether the database
// itself is in trouble; that is handled and logged here.
func (q *Queue) Suspect(err error) bool { return q.epochs.suspectIfDown(err) }

// Valid reports that epoch is this node's and still trusted.
func (q *Queue) Valid(epoch int64) bool { return epoch != 0 && q.epochs.valid() == epoch }

// Turned is how long ago the heartbeat's loop last ran: a few seconds in a live process,
// whether the database answers or not.
func (q *Queue) Turned() time.Duration {
	return q.clock.Now() - time.Duration(q.epochs.turned.Load())
}

// Epoch is the epoch that this node lives in and trusts, 0 when there is none.
func (q *Queue) Epoch() int64 { return q.epochs.valid() }

// Available returns nil if mail can probably be stored now. It costs nothing and is called
// at MAIL, to refuse early rather than at the final dot. The error is reserve.ErrFull if only
// room is missing.
func (q *Queue) Available() error {
	if err := q.epochs.down(); err != nil {
		return refusal(err)
	}
	if q.epochs.valid() == 0 {
		return refusal(errEpochLost)
	}
	if err := q.room.Refuses(); err != nil {
		return refusal(err)
	}
	return nil
}

// Gate is called just before the final dot for recipients ns of d. An error means
// that the epoch may no longer be ours: the dot must not be sent. way is where the dot goes, as
// Outcome.Upstream: the rows stay with it until the outcome is known, whatever happens to this node.
// "": the way is not recorded.
func (q *Queue) Gate(ctx context.Context, d *Delivery, ns []int, way string) error {
	if !q.Valid(d.Epoch) {
		return fmt.Errorf("gate of epoch %d: %w", d.Epoch, errEpochLost)
	}
	if !q.cfg.StrictGate && way == "" {
		return nil
	}
	if err := q.gates.mark(ctx, &gateAsk{d: d, ns: ns, way: way, done: make(chan error, 1)}); err != nil {
		return err
	}
	if !q.Valid(d.Epoch) {
		return fmt.Errorf("gate of epoch %d: %w", d.Epoch, errEpochLost)
	}
	return nil
}

// gates marks rows before their final dot, many in one statement: under the strict gate all of them,
// under the local one those whose route has several ways.
type gates struct {
	q    *Queue
	s    *pg.Dedicated
	asks chan *gateAsk
}

type gateAsk struct {
	d    *Delivery
	ns   []int
	way  string
	done chan error
}

func (g *gates) mark(ctx context.Context, ask *gateAsk) error {
	select {
	case g.asks <- ask:
	case <-ctx.Done():
		return ctx.Err()
	case <-g.q.stopped:
		return errClosed
	}
	select {
	case err := <-ask.done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (g *gates) run(ctx context.Context) {
	defer g.s.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case first := <-g.asks:
			asks := gather(first, g.asks, 256, nil)
			found, err := g.write(ctx, asks)
			for _, ask := range asks {
				key := gateKey{ask.d.Message.ID, ask.d.Epoch}
				switch {
				case err != nil:
					ask.done <- fmt.Errorf("gate: %w", err)
				case found[key] < len(ask.ns):
					ask.done <- fmt.Errorf("gate: %w", errEpochLost)
				default:
					ask.done <- nil
				}
			}
		}
	}
}

type gateKey struct {
	id    ID
	epoch int64
}

func (g *gates) write(ctx context.Context, asks []*gateAsk) (map[gateKey]int, error) {
	var ids [][16]byte
	var ns []int32
	var owners []int64
	var ways []string
	for _, ask := range asks {
		for _, n := range ask.ns {
			ids, ns, owners = append(ids, ask.d.Message.ID), append(ns, int32(n)), append(owners, ask.d.Epoch)
			ways = append(ways, ask.way)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := g.s.Get(ctx)
	if err != nil {
		return nil, err
	}
	found := make(map[gateKey]int)
	rows, err := conn.Query(ctx, sqlGate, ids, ns, owners, ways)
	if err == nil {
		var key gateKey
		var count int
		_, err = pgx.ForEachRow(rows, []any{&key.id, &key.epoch, &count, nil}, func() error {
			found[key] += count
			return nil
		})
	}
	return found, g.s.End(err)
}
