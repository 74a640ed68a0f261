package delivery

import (
	"context"
	"slices"
	"sync"
	"time"

	"postern/relay/connect"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// idleLook is how often an idle worker checks that its connection is still open.
const idleLook = time.Second

// turnedAwayWait is after what time a job without room at its destination comes back.
const turnedAwayWait = 10 * time.Second

// destination is one upstream or one MX domain: its waiting jobs and its
// connections. Every connection is a worker, which does one job after the other.
type destination struct {
	e      *Engine
	key    string  // of its way
	via    string  // the upstream's name, or route.MX
	domain string  // mx: the domain's key; "" for an upstream
	anyTLS bool    // mx: its mail goes whatever TLS the domain demands
	part   float64 // the part of the free room that its line may take

	mu       sync.Mutex
	upstream *upstream.Account // as of the last job; nil for mx
	version  int               // counts changes of upstream
	settings context.Context   // ends with the next of them; nil: nobody connects by these
	outdated func()            // ends settings
	waiting  line
	idle     []*worker // with an open connection; last in, first out
	workers  int       // connections open or being made
	live     int       // of them, with a conversation
	seeking  []*worker // those that wait for a place among all connections
	window   *window   // has a place for each of workers

	// In trouble the destination pauses first, if it worked recently, and then is
	// suspended. While it pauses its jobs wait in the line; a suspended one has none.
	failures    int      // times in a row that no conversation could be had
	suspensions int      // of them, those that were followed by a suspension
	pauses      int      // since the last transaction
	broken      int      // conversations in a row that broke off
	brokenBy    []userOf // the users whose messages broke off, the first two
	apart       apart
	retryAt     time.Time // not before; zero without failures
	trouble     *trouble  // the last
	talkedAt    time.Time // when a conversation last began or a transaction last ended
	owes        bool      // mail may wait in the queue for its suspension to end
	refusal     refusal
	evidence
}

// destination finds or makes the destination of a way. Mail with TLS-Required: No has others, since
// it goes where other mail waits (RFC 8689 section 5). Only the dispatcher calls it.
func (e *Engine) destination(w *way, need smtp.TLSNeed) *destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	key, anyTLS := w.key, need == smtp.TLSOptional && w.upstream == nil
	if anyTLS {
		key += " any TLS"
	}
	if d := e.destinations[key]; d != nil {
		return d
	}
	// A new one may be in trouble known to another node, or from before a restart.
	d := &destination{e: e, key: w.key, via: route.MX, domain: w.domain, anyTLS: anyTLS, upstream: w.upstream, owes: true}
	if w.upstream != nil {
		d.via = w.upstream.Name
		d.part = 9 // it may well be the only one
		d.window = e.windows.join(w.key, e.connectionsFor(w.upstream))
	} else {
		d.part = 1. / 9
		d.window = newWindow(1) // until a lookup has found the site
	}
	e.destinations[key] = d
	return d
}

// forget removes destinations without work and without a state to remember.
// Only the dispatcher calls it.
func (e *Engine) forget() {
	now := time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for key, d := range e.destinations {
		if d.isEmpty(now) {
			delete(e.destinations, key)
			e.windows.leave(d.window)
		}
	}
}

func (d *destination) isEmpty(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	// One in trouble is remembered until after its next try.
	remember := d.talkedAt.Add(recently)
	if d.failures > 0 {
		remember = d.retryAt.Add(2 * step(d.e.cfg.Backoff, d.suspensions))
	}
	return d.workers == 0 && d.waiting.len() == 0 && now.After(remember) && now.After(d.apart.until)
}

// isBusy reports that the destination wants no more work.
func (d *destination) isBusy(now time.Time) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.suspended(now) || d.full(2)
}

// full reports that the line takes its part of the free room, or the nth of it: however many
// destinations are stuck, there is room for another. mu is held.
func (d *destination) full(nth float64) bool {
	if d.waiting.len() == 0 {
		return false
	}
	messages, octets := d.e.load.free()
	part := d.part / nth
	return float64(d.waiting.len()) >= part*float64(messages) || float64(d.waiting.octets) >= part*float64(octets)
}

// add gives the destination a job. Only the dispatcher calls it.
func (d *destination) add(j *job, up *upstream.Account) {
	d.mu.Lock()
	d.update(up)
	t, until := d.hindrance(j)
	wait := d.outOfBudget(j)
	switch {
	case t != nil:
		d.mu.Unlock()
		d.putOff(j, t, until)
		return
	case wait != nil:
		d.mu.Unlock()
		d.await(j, wait)
		return
	case d.giveIdle(j):
	case d.full(1):
		d.mu.Unlock()
		d.turnAway()
		d.e.release(j, turnedAwayWait)
		return
	default:
		d.waiting.push(j)
		d.hire()
		d.makeWay(j.user())
	}
	d.mu.Unlock()
}

// turnAway counts a job without room. A busy domain is left out of claims; but a claim cannot
// know which mail goes to an upstream, so for a moment no new mail is taken from memory: it
// would only be released again.
func (d *destination) turnAway() {
	d.e.turnedAway.Add(1)
	if d.domain == "" {
		d.e.fullAt.Store(time.Now().UnixNano())
	}
}

// giveIdle gives j to an idle worker if there is one. mu is held.
func (d *destination) giveIdle(j *job) bool {
	n := len(d.idle) - 1
	if n < 0 {
		return false
	}
	w := d.idle[n]
	d.idle = d.idle[:n]
	w.jobs <- j // never blocks: a worker that stops being idle takes the job it was given
	return true
}

// useIdle gives idle workers waiting jobs that nobody else would take. mu is held.
func (d *destination) useIdle() {
	for d.waiting.len() > 0 && len(d.idle) > 0 {
		d.giveIdle(d.waiting.pop())
	}
}

// update takes over changed settings of the upstream, unless up is nil; a corrected account is
// tried immediately. mu is held.
func (d *destination) update(up *upstream.Account) {
	if up == d.upstream || up == nil {
		return
	}
	if !up.Equal(*d.upstream) {
		d.version++
		if d.settings != nil { // workers that connect begin anew
			d.outdated()
			d.settings = nil
		}
		d.window.reset(d.e.connectionsFor(up))
		d.failures, d.suspensions, d.pauses, d.broken, d.retryAt = 0, 0, 0, 0, time.Time{}
		d.apart, d.refusal = apart{}, refusal{}
		d.talkedAt = time.Time{} // that was another server, perhaps
	}
	d.upstream = up
}

// hasWork reports that jobs wait for a worker without a connection, and that there are not too many
// workers. mu is held.
func (d *destination) hasWork() bool {
	return d.waiting.len() > 0 && !d.e.closing() && !(d.testing() && d.workers > 1) && !d.window.over()
}

// enough reports that one more connection is not worth having: it would have to wait for a place
// among all connections. mu is held.
func (d *destination) enough() bool { return d.workers >= begin && d.e.slots.Full(1, d.key) }

// hire begins workers for waiting jobs as far as there are places, unless the engine is closing. mu is
// held.
func (d *destination) hire() {
	connecting := d.workers - d.live
	for !d.e.closing() && connecting < d.waiting.len() && !(d.testing() && d.workers > 0) && !d.enough() && d.window.take(d) {
		connecting++
		d.begin()
	}
}

// begin begins a worker, which has a place. mu is held.
func (d *destination) begin() {
	d.workers++
	w := newWorker(d)
	d.e.workers.Go(w.run)
}

// granted begins a worker with a place of a window, if it is still of use.
func (d *destination) granted(by *window) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.window != by || d.workers > 0 || d.waiting.len() == 0 || d.e.closing() {
		return false
	}
	d.begin()
	return true
}

// dismiss counts a worker out. pass must follow. mu is held.
func (d *destination) dismiss() {
	d.workers--
	d.window.add(-1, 0)
}

// pass gives free places to other domains of the site. No lock is held.
func (d *destination) pass() {
	d.mu.Lock()
	w := d.window
	d.mu.Unlock()
	w.pass()
}

// arrive moves the destination to the site at which its domain is hosted now, and reports
// whether it may connect there.
func (d *destination) arrive(site string) bool {
	to := d.e.windows.join(siteKey+site, d.e.sitePlaces())
	d.mu.Lock()
	from := d.window
	if from != to {
		from.add(-d.workers, -d.live)
		to.add(d.workers, d.live)
		d.window = to
	}
	may := !to.over()
	d.mu.Unlock()
	d.e.windows.leave(from) // if it is the same it has been joined twice
	from.pass()
	return may
}

// need is what a worker needs to begin a conversation.
type need struct {
	upstream *upstream.Account
	version  int
	settings context.Context // of that version
	failures int             // for connectFailed
	wait     time.Duration   // before it is tried: the destination pauses
	spent    connect.Spent   // by the attempt for which it is tried
}

// need returns how to reach the destination, and whether one more connection is
// wanted at all.
func (d *destination) need() (need, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.settings == nil {
		d.settings, d.outdated = context.WithCancel(context.Background())
	}
	n := need{upstream: d.upstream, version: d.version, settings: d.settings, failures: d.failures, spent: d.waiting.leastSpent()}
	if d.testing() {
		n.wait = time.Until(d.retryAt)
	}
	return n, d.hasWork()
}

func (d *destination) currentVersion() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.version
}

// keepsIdle reports that a connection of these settings may be kept without work, and what says
// that it may not any more.
func (d *destination) keepsIdle(version int) (bool, <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return version == d.version && !d.crowded(), d.window.nudge
}

// crowded reports that connections are scarce: none is kept idle then. mu is held.
func (d *destination) crowded() bool { return d.e.slots.Pressed() || d.window.isWanted() }

// handBack releases the jobs in the line.
func (d *destination) handBack() {
	d.mu.Lock()
	waiting := d.waiting.drain()
	d.mu.Unlock()
	for _, j := range waiting {
		d.e.release(j, 0)
	}
}

// putBack puts a job that was not begun at the front of the line.
func (d *destination) putBack(j *job) {
	d.mu.Lock()
	closing := d.e.closing()
	t, until := d.hindrance(j)
	if !closing && t == nil {
		d.waiting.pushFront(j)
	}
	d.mu.Unlock()
	switch {
	case closing:
		d.e.release(j, 0)
	case t != nil:
		d.putOff(j, t, until)
	}
}

// next returns the next job for w, whose connection is open: one that waits, or one
// that comes before the idle time is over. nil ends the worker.
func (d *destination) next(w *worker) *job {
	d.mu.Lock()
	if d.e.closing() {
		d.mu.Unlock()
		return nil
	}
	if d.window.ends(w.conn.sent) { // this one, and no other at the same time
		d.retire(w)
		d.mu.Unlock()
		return nil
	}
	if j := d.waiting.pop(); j != nil {
		d.mu.Unlock()
		return j
	}
	if d.crowded() {
		d.mu.Unlock()
		return nil
	}
	d.idle = append(d.idle, w)
	d.mu.Unlock()

	if j := w.idle(w.idleTime()); j != nil {
		return j
	}
	return d.wake(w)
}

// wake takes w from the idle ones; if it is not among them, a job was given to it.
func (d *destination) wake(w *worker) *job {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.idle, w); i >= 0 {
		d.idle = slices.Delete(d.idle, i, i+1)
		return nil
	}
	return <-w.jobs
}

// leave reports that a worker without a connection may end.
func (d *destination) leave() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.hasWork() && !d.window.isWanted() {
		return false
	}
	d.dismiss()
	d.useIdle()
	d.hire()
	return true
}

// depart is leave for a worker whose conversation was cut off: another may replace it.
func (d *destination) depart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dismiss()
	d.hire()
}

// connected counts a conversation that was begun: any trouble is over. Until it takes a job,
// w counts as a worker for which one waits: no other should connect for that job.
func (d *destination) connected(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.failures > 0 {
		d.e.cfg.Log.Info("destination works again", "via", d.via, "domain", d.domain)
	}
	d.failures, d.suspensions, d.retryAt = 0, 0, time.Time{}
	d.talkedAt = time.Now()
	d.hire()
	w.live = true
	d.live++
	d.window.add(0, 1)
}

// disconnected counts the end of a conversation.
func (d *destination) disconnected(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retire(w)
}

// retire uncounts w's conversation, once. mu is held.
func (d *destination) retire(w *worker) {
	if w.live {
		w.live = false
		d.live--
		d.window.add(0, -1)
	}
}

// succeeded counts a completed transaction, which took so long if it was a delivery, else zero.
func (d *destination) succeeded(user userOf, took time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.broken, d.pauses = 0, 0
	if d.apart.user == user {
		d.apart = apart{}
	}
	d.talkedAt = time.Now()
	if d.window.ended(took, d.waiting.len() > 0 && !d.enough()); d.waiting.len() > 0 {
		d.hire()
	}
}

// known returns the destination of a way, nil if there is none.
func (e *Engine) known(way string) *destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.destinations[way]
}
