package delivery

import (
	"context"
	"slices"
	"time"

	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
)

// Breakers are the breakers of upstreams, which all nodes share: *breaker.Breakers. None of the
// methods waits.
type Breakers interface {
	State(upstream string) breaker.State
	Open(upstream string, c breaker.Cause)
	Suspect(upstream, sender string)
	Works(upstream string)
	Admit(upstream string) bool
}

// evidence is what a destination knows for and against its upstream's account.
type evidence struct {
	accused []userOf     // whose mail was refused for the account since some was taken: the first two
	taken   [2]takenFrom // of two users, the last first
}

// takenFrom is a user whose mail was taken, and its sender.
type takenFrom struct {
	user   userOf
	sender smtp.Address
}

// breaker is the state of the upstream's breaker, as far as this node follows it. One that
// opened because no conversation can be had is not followed while one goes on here, nor while
// the destination pauses, or would pause first: the trouble may be another node's own, or a
// restart. mu is held.
func (d *destination) breaker() (s breaker.State, open bool) {
	if d.upstream == nil || d.e.cfg.Breakers == nil {
		return s, false
	}
	s = d.e.cfg.Breakers.State(d.via)
	works := d.live > 0 || d.suspensions == 0 && (d.failures > 0 || time.Since(d.talkedAt) < recently)
	return s, s.Open && (s.Account() || !works)
}

// openWait is the least wait of mail for an open breaker; up to as much again is added at random. It
// is long, so that such mail costs the database little: when the breaker closes, the mail is due.
const openWait = time.Hour

// UpstreamChanged follows a breaker that has opened or closed. Every node makes the mail of a
// closed one due: each may have let some of it wait until it knew.
func (e *Engine) UpstreamChanged(name string) {
	way := queue.Way(name, "")
	closed := !e.cfg.Breakers.State(name).Open
	if closed {
		for _, way := range e.waiting(way, true) {
			e.cfg.Queue.Recovered(way)
		}
	}
	d := e.known(way)
	if d == nil {
		return
	}
	d.mu.Lock()
	if closed {
		d.retryAt = time.Time{} // for all nodes it works again
	}
	s, open := d.breaker()
	var waiting []*job
	if open && !e.closing() {
		waiting = d.waiting.drain()
	}
	d.mu.Unlock()
	for _, j := range waiting {
		d.putOff(j, &trouble{breaker: &s}, s.NextProbe)
	}
}

// OneDue makes the recipient due that would wait for an upstream the longest: it was not refused a
// moment ago. It reports whether there is one.
func (e *Engine) OneDue(ctx context.Context, name string) (bool, error) {
	return e.cfg.Queue.OneDue(ctx, e.waiting(queue.Way(name, ""), false))
}

// waiting are the ways that mail waits for which an upstream's would take: that one, and what awaits
// has noted, for the last time if over.
func (e *Engine) waiting(way string, over bool) []string {
	ways := []string{way}
	e.awaited.Range(func(pair, _ any) bool {
		if of := pair.([2]string); of[0] == way {
			ways = append(ways, of[1])
			if over {
				e.awaited.Delete(pair)
			}
		}
		return true
	})
	return ways
}

// waitsFor is the way that an outcome waits for. After a refusal of the account that is, unless it
// waits for another, the upstream itself: its breaker may have opened, and its closing makes the mail
// due.
func waitsFor(o *queue.Outcome) string {
	if o.WaitsFor == "" && o.Result == queue.Deferred && o.Scope == string(upstream.ScopeAccount) && o.Upstream != route.MX {
		return queue.Way(o.Upstream, "")
	}
	return o.WaitsFor
}

// awaits notes that mail has left several upstreams and, in the queue, waits for one of them: it is
// due when the breaker of any of them closes.
func (e *Engine) awaits(way string, left []queue.LeftWay) {
	if !slices.ContainsFunc(left, func(l queue.LeftWay) bool { return queue.Way(l.Way, "") == way }) {
		return // MX, a budget, or nothing
	}
	for _, l := range left {
		if other := queue.Way(l.Way, ""); other != way {
			e.awaited.Store([2]string{other, way}, nil)
		}
	}
}

// tellSuspended opens the breaker of an upstream that this node suspends. mu is held.
func (d *destination) tellSuspended(t *trouble) {
	if d.upstream == nil || d.e.cfg.Breakers == nil || t.OfMachine() {
		return
	}
	c := t.Cause(d.upstream.Replies)
	c.Sender = d.taken[0].sender.String()
	d.e.cfg.Breakers.Open(d.via, c)
}

// tellEnded tells the breaker of the upstream how a transaction ended. A refusal that concerns
// the account counts when two users have met with one and no mail was taken in between, or
// when a probe with another user's sender meets with one too: what a user writes into a message
// must not stop the mail of others.
func (d *destination) tellEnded(j *job, t *transaction, outcomes []queue.Outcome) {
	b := d.e.cfg.Breakers
	if d.upstream == nil || b == nil || j.user() == 0 && !j.trial { // a notice has the text of the user that it is for
		return
	}
	taken := slices.ContainsFunc(outcomes, func(o queue.Outcome) bool { return o.Result == queue.Delivered })
	fault := -1
	if !taken {
		fault = slices.IndexFunc(outcomes, func(o queue.Outcome) bool {
			return o.Result == queue.Deferred && !o.Ours && o.Scope == string(upstream.ScopeAccount)
		})
	}
	switch {
	case fault >= 0:
		v := judge(t.replies, &t.res, fault)
		d.accuse(j, breaker.Cause{Stage: stageOf(&t.res, fault), Scope: upstream.ScopeAccount,
			Reply: outcomes[fault].Reply.String(), Wait: v.Wait()})
	case taken:
		d.mu.Lock()
		d.accused = nil
		if d.taken[0].user != j.user() {
			d.taken[1] = d.taken[0]
		}
		d.taken[0] = takenFrom{j.user(), j.Message.Sender}
		d.mu.Unlock()
		b.Works(d.via)
	case t.res.Err == nil:
		if s := b.State(d.via); s.Open && !s.Account() {
			b.Works(d.via)
		}
	}
}

// accuse counts a refusal of the account, unless it is over before a probe would be made.
func (d *destination) accuse(j *job, c breaker.Cause) {
	if c.Wait > 0 && c.Wait < step(d.e.cfg.Backoff, 0) && !j.trial {
		return
	}
	d.mu.Lock()
	if len(d.accused) < 2 && !slices.Contains(d.accused, j.user()) {
		d.accused = append(d.accused, j.user())
	}
	sure := len(d.accused) > 1 || j.trial
	other := d.taken[0]
	if other.user == j.user() {
		other = d.taken[1]
	}
	d.mu.Unlock()
	c.Sender = other.sender.String()
	switch {
	case sure:
		d.e.cfg.Breakers.Open(d.via, c)
	case c.Sender != "":
		d.e.cfg.Breakers.Suspect(d.via, c.Sender)
	}
}
