package delivery

import (
	"slices"
	"time"

	"postern/relay/queue"
)

// troubleLimit is how many conversations in a row may break off half-way before a destination
// is left alone as if it could not be reached.
const troubleLimit = 5

// recently is how long after its last reply a destination counts as working.
const recently = time.Minute

// apart is a user whose messages alone broke off conversations. Their content may be the
// cause, so only this user's mail waits for a while.
type apart struct {
	user    userOf
	rows    int // of broken conversations
	until   time.Time
	trouble *trouble
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

// testing reports that trouble may not be over: a single connection finds out. mu is held.
func (d *destination) testing() bool { return d.failures > 0 && d.live == 0 }

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
	case d.e.closing():
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
	d.restFor(wait, t, true)
	d.e.cfg.Log.Info("destination pauses", "via", d.via, "domain", d.domain,
		"for", wait, "reply", t.Reply.String(), "error", t.Err)
}

// suspend leaves the destination alone for a while and returns its waiting jobs. mu is held.
func (d *destination) suspend(t *trouble) []*job {
	wait := step(d.e.cfg.Backoff, d.suspensions)
	d.suspensions++
	d.restFor(wait, t, false)
	d.tellSuspended(t)
	d.e.cfg.Log.Warn("destination suspended", "via", d.via, "domain", d.domain,
		"for", wait, "reply", t.Reply.String(), "error", t.Err)
	return d.waiting.drain()
}

// restFor leaves a destination alone for a time. mu is held.
func (d *destination) restFor(wait time.Duration, t *trouble, restarts bool) {
	d.failures++
	d.broken = 0
	d.retryAt = time.Now().Add(wait)
	d.trouble = t
	d.window.leftAlone(restarts, t.Said)
}

// putOff makes a job go on to its next way, or else wait until its destination is no longer
// left alone. That is not an attempt: nothing was tried.
func (d *destination) putOff(j *job, t *trouble, until time.Time) {
	d.mu.Lock()
	d.owes = d.owes || !t.ofUser
	d.mu.Unlock()
	outcomes := j.each(func(r *queue.Recipient) queue.Outcome { return t.waiting(d, j, r, until) })
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
		outcomes := j.each(func(r *queue.Recipient) queue.Outcome { return t.outcome(d, j, r, away) })
		rest := j.those(func(i int) bool { return outcomes[i].Result == queue.Deferred })
		j.Tries += t.Tries
		j.Sessions += t.Sessions
		if j.Begun.IsZero() {
			j.Begun = t.Begun
		}
		d.e.leave(j, rest, outcomes, t.Err)
	}
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

// tryAgain ends the wait of a destination in trouble: it is said to work again.
func (d *destination) tryAgain() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.retryAt, d.apart.until = time.Time{}, time.Time{}
}
