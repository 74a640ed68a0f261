package delivery

import (
	"context"
	"errors"
	"runtime/debug"
	"sync/atomic"
	"time"

	"postern/relay/connect"
	"postern/relay/smtp"
)

const (
	quitTime = 5 * time.Second  // bounds a QUIT
	gateWait = 10 * time.Second // a job comes back after the gate refused it
	bodyWait = time.Minute      // a job comes back whose stored text could not be read

	demandTime = time.Minute // mail is begun on a connection to a mail host
)

// worker is one connection to a destination, or a wait for one. It does one job after
// another in its own goroutine.
type worker struct {
	d      *destination
	ctx    context.Context // ends the conversation immediately, and with it the worker
	cancel context.CancelCauseFunc
	jobs   chan *job // gives an idle worker its next job
	timer  *time.Timer
	conn   *conn
	live   bool // counted in the destination's live; guarded by its mu

	user     userOf             // in whose name it has its slot, or waits for one
	anew     context.CancelFunc // while it waits: it is to ask for whom; guarded by the destination's mu
	talking  atomic.Bool        // the server is at work, and no final dot was sent
	progress atomic.Uint64      // of the conversation, see smtp.ClientConfig
	silence  silence

	job     *job        // being done
	inText  atomic.Bool // the message's text is being sent
	dotSent bool        // the final dot was, for all recipients of job that are not settled
	body    bodyReader
	rcpts   []smtp.RcptCommand
	gate    error  // the error of the queue's Gate
	count   func() // counts the message as signed or unsigned; nil: it is neither

	beforeDot func() error // the method value, made once
}

// conn is a worker's conversation.
type conn struct {
	*connect.Conn
	opened  time.Time
	version int  // of the upstream's settings
	sent    int  // transactions
	kept    bool // it has been idle
	onward  bool // a message came here from another host of the destination
}

// takes reports that the server's limits (RFC 9422) have room on this connection for a
// transaction of j: for its first recipient.
func (c *conn) takes(j *job) bool {
	return c.Client.Takes(1, j.address) > 0
}

// isOld reports a connection to a mail host that has met demands of its domain which may have
// changed since.
func (c *conn) isOld() bool { return c.Walk.Upstream == nil && time.Since(c.opened) > demandTime }

func newWorker(d *destination) *worker {
	w := &worker{d: d, jobs: make(chan *job, 1)}
	w.ctx, w.cancel = context.WithCancelCause(d.e.hard)
	w.beforeDot = w.askGate
	w.timer = time.NewTimer(time.Hour)
	w.timer.Stop()
	return w
}

// run works until nothing is left to do.
func (w *worker) run() {
	e := w.d.e
	e.enter(w)
	defer e.exit(w)
	defer w.cancel(nil)
	defer w.d.pass()
	if !w.takePlace() {
		w.d.leave() // while closing nothing waits for it
		return
	}
	defer e.slots.Give(1, w.user, w.d.key)
	for {
		w.serve()
		w.hangUp()
		if w.ctx.Err() != nil {
			w.d.depart()
			return
		}
		if w.d.leave() {
			return
		}
	}
}

// serve does jobs while there are any. A panic costs the job's attempt and the
// connection, not the process: a message that provokes one would come back after
// every restart.
func (w *worker) serve() {
	defer func() {
		if r := recover(); r != nil {
			w.d.e.panics.Add(1)
			w.d.e.cfg.Log.Error("panic in delivery", "panic", r, "stack", string(debug.Stack()))
			w.abandon()
		}
	}()
	for w.conn != nil || w.connect() {
		j := w.d.next(w)
		if j == nil {
			return
		}
		for j != nil {
			w.job = j
			j = w.do(j)
		}
		w.job = nil
		if w.conn != nil && (w.conn.onward || w.conn.Client.Exhausted() || w.conn.sent >= w.perConnection()) {
			w.hangUp()
		}
	}
}

// perConnection is the most messages over the open connection.
func (w *worker) perConnection() int {
	if up := w.conn.Walk.Upstream; up != nil && up.MaxMessages > 0 {
		return up.MaxMessages
	}
	return w.d.e.bounds.Load().PerConnection
}

// idleTime is how long the open connection is kept without work.
func (w *worker) idleTime() time.Duration {
	if up := w.conn.Walk.Upstream; up != nil && up.IdleSeconds > 0 {
		return time.Duration(up.IdleSeconds) * time.Second
	}
	return w.d.e.bounds.Load().IdleTime
}

// connect begins a conversation if one is wanted. The worker has no job meanwhile: waiting
// jobs go to the first worker that is ready.
func (w *worker) connect() bool {
	need, wanted := w.d.need()
	for ; wanted && need.wait > 0; need, wanted = w.d.need() {
		if !w.d.e.pause(need.wait) {
			return false
		}
	}
	if !wanted {
		return false
	}
	ok, t := w.open(need)
	if t != nil {
		w.d.connectFailed(t, need.failures)
	}
	return ok
}

// open begins a conversation, or returns the destination's trouble, nil if there is none: a job for which
// there is no place waits in the line, and what former settings ended says nothing about those of now.
func (w *worker) open(need need) (bool, *trouble) {
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	defer context.AfterFunc(need.settings, cancel)()
	c, t := w.d.e.dialer.Open(ctx, w.d.domain, need.upstream, need.spent, connect.Watch{Talking: &w.talking, Progress: &w.progress, Arrive: w.d.arrive, AnyTLS: w.d.anyTLS})
	switch {
	case t == nil:
	case t.Err == connect.ErrNoPlace, need.settings.Err() != nil:
		return false, nil
	default:
		return false, &trouble{Trouble: *t}
	}
	w.conn = &conn{Conn: c, opened: time.Now(), version: need.version}
	w.d.connected(w)
	return true, nil
}

// idle waits for a job. It returns nil after most, or when the server has ended the
// connection: that is better noticed without a message in hand. One of former settings goes.
func (w *worker) idle(most time.Duration) *job {
	w.conn.kept = true
	select {
	case j := <-w.jobs:
		return j // Send looks at the connection before it says anything
	default:
	}
	until := time.Now().Add(most)
	for left := most; left > 0 && w.conn.Client.Usable(); left = time.Until(until) {
		keeps, nudge := w.d.keepsIdle(w.conn.version)
		if !keeps {
			return nil
		}
		w.timer.Reset(min(left, idleLook))
		select {
		case j := <-w.jobs:
			w.timer.Stop()
			return j
		case <-w.timer.C:
		case <-nudge:
		case <-w.d.e.work.Done():
			w.timer.Stop()
			return nil
		}
	}
	return nil
}

var errDefect = errors.New("defect of the relay")

// abandon settles the job that a panic interrupted. Where there was no conversation
// yet the destination is one that cannot be had: it would be tried again immediately,
// and for ever.
func (w *worker) abandon() {
	j, connecting := w.job, w.job == nil && w.conn == nil
	w.job = nil
	w.dropConn()
	if connecting {
		need, _ := w.d.need()
		w.d.connectFailed(&trouble{Trouble: connect.Trouble{Reply: smtp.Temporary(451, 3, 0, errDefect.Error()), Err: errDefect}}, need.failures)
	}
	if j == nil {
		return
	}
	res := smtp.Result{
		Replies: make([]smtp.Reply, len(j.rcpts)),
		Err:     errDefect,
		DotSent: w.inText.Load() || w.dotSent,
	}
	w.inText.Store(false)
	now := time.Now()
	w.d.e.settle(j, j.rcpts, classify(w.facts(j, now, now), j.rcpts, res, w.judging(j)), res.Err)
	w.d.e.end(j)
}

// do does one job and returns the rest of it, which is to be done immediately, if any. The
// connection is closed if it broke or is out of date.
func (w *worker) do(j *job) *job {
	switch {
	case w.d.e.closing():
		w.job = nil
		w.d.e.release(j, 0)
		return nil
	case w.conn == nil || w.conn.version != w.d.currentVersion() || !w.conn.takes(j) || w.conn.isOld():
		w.job = nil
		w.d.putBack(j)
		w.hangUp()
		return nil
	}
	done := w.spend(j)
	if done == nil {
		return nil
	}
	defer done()
	return w.attempt(j)
}

// hangUp ends the conversation politely.
func (w *worker) hangUp() {
	if w.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(w.d.e.hard, quitTime)
	defer cancel()
	// Nothing depends on its reply.
	_ = w.d.e.cfg.Guard.Try("delivery: QUIT", func() error { return w.conn.Client.Quit(ctx) })
	w.dropConn()
}

// dropConn ends the connection.
func (w *worker) dropConn() {
	if w.conn == nil {
		return
	}
	w.conn.Close()
	w.conn = nil
	w.d.disconnected(w)
}

// askGate is called when all but the final dot was written.
func (w *worker) askGate() error {
	w.talking.Store(false) // from here on only this worker knows the outcome
	way := ""
	if w.job.route != 0 || w.d.e.cfg.RecordWays {
		way = w.job.name
	}
	w.gate = w.d.e.cfg.Queue.Gate(w.ctx, w.job.Delivery, numbers(w.job.rcpts), way)
	return w.gate
}

func (e *Engine) enter(w *worker) {
	e.mu.Lock()
	e.active[w] = struct{}{}
	e.mu.Unlock()
}

func (e *Engine) exit(w *worker) {
	e.mu.Lock()
	delete(e.active, w)
	e.mu.Unlock()
}
