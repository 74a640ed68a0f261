package delivery

import (
	"context"
	"slices"
	"sync"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// troubleLimit is how many conversations in a row may break off half-way before a destination
// is left alone as if it could not be reached.
const troubleLimit = 5

// recently is how long after its last reply a destination counts as working.
const recently = time.Minute

// idleLook is how often an idle worker checks that its connection is still open.
const idleLook = time.Second

// turnedAwayWait is after what time a job without room at its destination comes back.
const turnedAwayWait = 10 * time.Second

// destination is one upstream or one MX domain: its waiting jobs and its
// connections. Every connection is a worker, which does one job after the other.
type destination struct {
	e      *Engine
	key    string  // of its way
	via    string  // the upstream's name, or "mx"
	domain string  // mx: the domain's key; "" for an upstream
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

// refusal is of mail that was refused for the account, and waits in the queue for its upstream.
type refusal struct {
	waits bool      // there is some
	calls int       // how often it was made due, since it was last taken
	until time.Time // it is not made due
}

// met notes a transaction whose mail was refused.
func (r *refusal) met(now time.Time, backoff []time.Duration) {
	if r.waits = true; r.until.Before(now) {
		r.until = now.Add(r.pause(backoff))
	}
}

// isOver reports, once, that the mail is to be tried again, for other mail was taken. Where it is
// refused again and again, as by a limit of one sender's, the pauses grow.
func (r *refusal) isOver(now time.Time, backoff []time.Duration) bool {
	switch {
	case now.Before(r.until):
		return false
	case !r.waits:
		r.calls = 0
		return false
	}
	r.waits = false
	r.calls++
	r.until = now.Add(r.pause(backoff))
	return true
}

// pause is first a sixth of that between the attempts of a message.
func (r *refusal) pause(backoff []time.Duration) time.Duration {
	if r.calls == 0 {
		return step(backoff, 0) / 6
	}
	return step(backoff, r.calls-1)
}

// apart is a user whose messages alone broke off conversations. Their content may be the
// cause, so only this user's mail waits for a while.
type apart struct {
	user    userOf
	rows    int // of broken conversations
	until   time.Time
	trouble *trouble
}

// destination finds or makes the destination of a way. Only the dispatcher calls it.
func (e *Engine) destination(w *way) *destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := e.destinations[w.key]; d != nil {
		return d
	}
	// A new one may be in trouble known to another node, or from before a restart.
	d := &destination{e: e, key: w.key, via: "mx", domain: w.domain, upstream: w.upstream, owes: true}
	if w.upstream != nil {
		d.via = w.upstream.Name
		d.part = 9 // it may well be the only one
		d.window = e.windows.join(w.key, e.connectionsFor(w.upstream))
	} else {
		d.part = 1. / 9
		d.window = newWindow(1) // until a lookup has found the site
	}
	e.destinations[w.key] = d
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

// suspended reports that the destination is left alone, by this node or by all. mu is held.
func (d *destination) suspended(now time.Time) bool {
	_, open := d.breaker()
	return open || d.suspensions > 0 && d.live == 0 && now.Before(d.retryAt)
}

// hindrance is why j must not be sent before until, nil if it may be. A job that has a next way
// waits neither for the end of a pause nor for others to find out whether the trouble is over. mu is
// held.
func (d *destination) hindrance(j *job) (t *trouble, until time.Time) {
	now := time.Now()
	s, open := d.breaker()
	if open && !j.trial && d.e.cfg.Breakers.Admit(d.via) {
		j.trial, d.retryAt = true, time.Time{} // a probe has got through
	}
	switch a := &d.apart; {
	case j.trial:
		return nil, now
	case open:
		return &trouble{breaker: &s}, s.NextProbe
	case d.suspended(now):
		return d.trouble, d.retryAt
	case d.failures > 0 && d.live == 0 && (now.Before(d.retryAt) || d.waiting.len() > 0 || d.workers > 0) && j.hasNext():
		return d.trouble, d.retryAt
	case a.trouble != nil && a.user == j.user() && now.Before(a.until):
		return a.trouble, a.until
	}
	return nil, now
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
		if d.settings != nil { // who connects begins anew
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

// testing reports that trouble may not be over: a single connection finds out. mu is held.
func (d *destination) testing() bool { return d.failures > 0 && d.live == 0 }

// excess reports that there are too many workers. mu is held.
func (d *destination) excess() bool { return d.testing() && d.workers > 1 || d.window.over() }

// enough reports that one more connection is not worth having: it would have to wait for a place
// among all connections. mu is held.
func (d *destination) enough() bool { return d.workers >= begin && d.e.slots.Full(1, d.key) }

// hire begins workers for waiting jobs as far as there are places. mu is held.
func (d *destination) hire() {
	connecting := d.workers - d.live
	for connecting < d.waiting.len() && !(d.testing() && d.workers > 0) && !d.enough() && d.window.take(d) {
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
	if d.window != by || d.workers > 0 || d.waiting.len() == 0 || d.e.closing.Load() {
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
	wanted := d.waiting.len() > 0 && !d.excess() && !d.e.closing.Load()
	if d.settings == nil {
		d.settings, d.outdated = context.WithCancel(context.Background())
	}
	n := need{upstream: d.upstream, version: d.version, settings: d.settings, failures: d.failures, spent: d.waiting.leastSpent()}
	if d.testing() {
		n.wait = time.Until(d.retryAt)
	}
	return n, wanted
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

// putBack puts a job that was not begun at the front of the line.
func (d *destination) putBack(j *job) {
	d.mu.Lock()
	closing := d.e.closing.Load()
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
	if d.e.closing.Load() {
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
	for i := range d.idle {
		if d.idle[i] == w {
			d.idle = append(d.idle[:i], d.idle[i+1:]...)
			return nil
		}
	}
	return <-w.jobs
}

// leave reports that a worker without a connection may end.
func (d *destination) leave() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.waiting.len() > 0 && !d.e.closing.Load() && !d.excess() && !d.window.isWanted() {
		return false
	}
	d.dismiss()
	d.useIdle()
	if !d.e.closing.Load() {
		d.hire()
	}
	return true
}

// depart is leave for a worker whose conversation was cut off: another may replace it.
func (d *destination) depart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dismiss()
	if !d.e.closing.Load() {
		d.hire()
	}
}

// seek gives w the user in whose name it waits for a place, until anew is called.
func (d *destination) seek(w *worker, anew context.CancelFunc) {
	d.mu.Lock()
	defer d.mu.Unlock()
	w.user, w.anew = d.claimant(), anew
	d.seeking = append(d.seeking, w)
}

// sought is the end of that.
func (d *destination) sought(w *worker) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.seeking = slices.DeleteFunc(d.seeking, func(other *worker) bool { return other == w })
}

// claimant is the user in whose name the next place is wanted: of those whose messages wait,
// the first without a whole share of the places. mu is held.
func (d *destination) claimant() userOf {
	first := d.waiting.first()
	if first == nil {
		return 0
	}
	last, full := first.user(), d.e.slots.Full(1, first.user())
	j := d.waiting.find(func(j *job) bool {
		if j.user() != last {
			last, full = j.user(), d.e.slots.Full(1, j.user())
		}
		return !full
	})
	if j == nil {
		j = first
	}
	return j.user()
}

// makeWay keeps workers from all waiting, indefinitely, in the names of users with a whole
// share while a message of another user waits. mu is held.
func (d *destination) makeWay(user userOf) {
	mayHave := func(w *worker) bool { return !d.e.slots.Full(1, w.user) }
	if n := len(d.seeking); n > 0 && !d.e.slots.Full(1, user) && !slices.ContainsFunc(d.seeking, mayHave) {
		d.seeking[n-1].anew()
	}
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

// recovered makes the mail due that the destination's suspension deferred, after a completed
// transaction: with a server that greets and then drops every conversation, all of it would be
// tried in vain each time that the suspension ends. A transaction that leaves its own mail
// waiting for the destination, as a refusal of the account does, is none: it would make itself due.
func (d *destination) recovered(outcomes []queue.Outcome) {
	refused := slices.ContainsFunc(outcomes, func(o queue.Outcome) bool { return waitsFor(&o) == d.key })
	now, backoff := time.Now(), d.e.cfg.Backoff
	d.mu.Lock()
	defer d.mu.Unlock()
	if refused {
		d.refusal.met(now, backoff)
		return
	}
	if s, _ := d.breaker(); s.Open { // its end makes the mail due
		return
	}
	if over := d.refusal.isOver(now, backoff); over || d.owes {
		d.owes = false
		d.e.cfg.Queue.Recovered(d.key)
	}
}

// slowDown heeds a reply of the server that wants less of us.
func (d *destination) slowDown(r smtp.Reply) {
	d.mu.Lock()
	w := d.window
	d.mu.Unlock()
	if limit, heeded := w.halve(); heeded {
		d.e.cfg.Log.Info("fewer connections", "via", d.via, "domain", d.domain, "connections", limit, "reply", r.String())
	}
}

// brokeOff counts a conversation that ended half-way while it carried a message of user.
// Enough of them in a row count as an unreachable destination, if they carried messages of
// several users: one user's messages may be the cause themselves. A pause comes first in
// either case: a restart breaks off all conversations, and they may be of one user.
func (d *destination) brokeOff(t *trouble, user userOf) {
	d.mu.Lock()
	d.window.lose()
	if d.broken == 0 {
		d.brokenBy = d.brokenBy[:0]
	}
	if len(d.brokenBy) < 2 && !slices.Contains(d.brokenBy, user) {
		d.brokenBy = append(d.brokenBy, user)
	}
	d.broken++
	if d.broken < troubleLimit || d.live > 0 {
		d.mu.Unlock()
		return
	}
	var victims []*job
	if len(d.brokenBy) > 1 || d.mayPause(t) {
		victims = d.leaveAlone(t)
	} else {
		victims = d.setApart(t, user)
	}
	d.mu.Unlock()
	d.giveUp(victims, t)
}

// setApart makes a user's mail wait and returns the jobs that this concerns. After the first
// row of broken conversations it does nothing: a new connection will show whether the server
// is there at all. mu is held.
func (d *destination) setApart(t *trouble, user userOf) []*job {
	if d.apart.user != user {
		d.apart = apart{user: user}
	}
	a := &d.apart
	a.rows++
	d.broken = 0
	if a.rows == 1 {
		return nil
	}
	t.ofUser = true
	wait := step(d.e.cfg.Backoff, a.rows-2)
	a.until, a.trouble = time.Now().Add(wait), t
	d.e.cfg.Log.Warn("destination suspended for one user", "via", d.via, "domain", d.domain,
		"user_id", int64(user), "for", wait, "reply", t.Reply.String(), "error", t.Err)
	return d.waiting.drainOf(func(j *job) bool { return j.user() == user })
}

// connectFailed decides about the waiting jobs after a conversation could not be begun.
// since is what failures was before: several connections that were tried concurrently
// and failed together are one failure.
func (d *destination) connectFailed(t *trouble, since int) {
	var victims []*job
	d.mu.Lock()
	switch {
	case t.Permanent:
		victims = d.waiting.drain()
	case t.Crowded && (t.Wait == nil || d.live == 0):
		crowd := d.waiting.drain()
		d.mu.Unlock()
		for _, j := range crowd {
			d.turnedAway(j, t)
		}
		return
	case d.e.closing.Load():
	case d.live > 0 || t.Said && t.Reply.Code == 421 && d.talking() > 1:
		// Other conversations with it go on, or are about to begin: we had too many.
		d.window.refused(len(d.seeking), t.Said)
		d.useIdle()
	case d.failures == since:
		victims = d.leaveAlone(t)
	}
	d.mu.Unlock()
	d.giveUp(victims, t)
}

// talking is how many connections are open or being made, with the one that has just failed.
// mu is held.
func (d *destination) talking() int { return d.workers - len(d.seeking) }

// leaveAlone pauses or suspends the destination and returns the jobs that do not wait for its
// return: during a pause those that have a next way. mu is held.
func (d *destination) leaveAlone(t *trouble) []*job {
	if d.mayPause(t) {
		d.pause(t)
		return d.waiting.drainOf((*job).hasNext)
	}
	return d.suspend(t)
}

// mayPause reports that the destination worked a moment ago, or has only paused since. mu
// is held.
func (d *destination) mayPause(t *trouble) bool {
	works := d.pauses > 0 || time.Since(d.talkedAt) < recently
	return works && d.suspensions == 0 && d.pauses < len(d.e.cfg.Pauses) && !t.Reply.IsPermanent()
}

// pause leaves a destination alone that worked a moment ago and is probably restarting: its
// jobs stay in the line, and no attempt counts. Afterwards it gets its former number of
// connections back. mu is held.
func (d *destination) pause(t *trouble) {
	wait := d.e.cfg.Pauses[d.pauses]
	d.pauses++
	d.failures++
	d.broken = 0
	d.retryAt = time.Now().Add(wait)
	d.trouble = t
	d.window.leftAlone(true, t.Said)
	d.e.cfg.Log.Info("destination pauses", "via", d.via, "domain", d.domain,
		"for", wait, "reply", t.Reply.String(), "error", t.Err)
}

// suspend leaves the destination alone for a while and returns its waiting jobs. mu is held.
func (d *destination) suspend(t *trouble) []*job {
	wait := step(d.e.cfg.Backoff, d.suspensions)
	d.suspensions++
	d.failures++
	d.broken = 0
	d.retryAt = time.Now().Add(wait)
	d.trouble = t
	d.window.leftAlone(false, t.Said)
	d.tellSuspended(t)
	d.e.cfg.Log.Warn("destination suspended", "via", d.via, "domain", d.domain,
		"for", wait, "reply", t.Reply.String(), "error", t.Err)
	return d.waiting.drain()
}

// putOff makes a job go on to its next way, or else wait until its destination is no longer
// left alone. That is not an attempt: nothing was tried.
func (d *destination) putOff(j *job, t *trouble, until time.Time) {
	d.mu.Lock()
	d.owes = d.owes || !t.ofUser
	d.mu.Unlock()
	outcomes := make([]queue.Outcome, len(j.rcpts))
	for i := range j.rcpts {
		outcomes[i] = t.waiting(d, j, &j.rcpts[i], until)
	}
	d.e.leave(j, j.rcpts, outcomes, t.Err)
}

// giveUp ends jobs by the destination's trouble: they go on to their next way, or are deferred
// at least until it is over, or failed if it is permanent.
func (d *destination) giveUp(jobs []*job, t *trouble) {
	d.mu.Lock()
	away := time.Until(d.retryAt)
	if t.ofUser {
		away = time.Until(d.apart.until)
	}
	d.owes = d.owes || len(jobs) > 0 && !t.Permanent && !t.ofUser
	d.mu.Unlock()
	for _, j := range jobs {
		outcomes := make([]queue.Outcome, len(j.rcpts))
		var rest []queue.Recipient
		for i := range j.rcpts {
			outcomes[i] = t.outcome(d, j, &j.rcpts[i], away)
			if outcomes[i].Result == queue.Deferred {
				rest = append(rest, j.rcpts[i])
			}
		}
		j.Tries += t.Tries
		j.Sessions += t.Sessions
		if j.Begun.IsZero() {
			j.Begun = t.Begun
		}
		d.e.leave(j, rest, outcomes, t.Err)
	}
}

// known returns the destination of a way, nil if there is none.
func (e *Engine) known(way string) *destination {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.destinations[way]
}

// tryAgain ends the wait of a destination in trouble: it is said to work again.
func (d *destination) tryAgain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retryAt, d.apart.until = time.Time{}, time.Time{}
}

// drain takes all waiting jobs.
func (d *destination) drain() []*job {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.waiting.drain()
}

// quitContext bounds a QUIT.
func (e *Engine) quitContext() (context.Context, context.CancelFunc) {
	return context.WithTimeout(e.hard, quitTime)
}
