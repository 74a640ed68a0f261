package delivery

import (
	"slices"
	"strings"
	"time"

	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// course is where recipients go in one attempt. Jobs share what it points to: it is never
// changed, only replaced.
type course struct {
	route   int64                 // the route's number if it has several ways, else 0
	name    string                // of the way they are at, as Outcome.Upstream
	next    []route.Way           // that come after it
	left    *[]queue.LeftWay      // that they left before it, and why; nil: none
	unasked bool                  // one of those could not be used: what others lack it may have
	best    map[int]queue.Outcome // the most informative of what those said, by recipient
}

// first is the first of the next ways that can be used, for one recipient. It begins with the
// course that follows from it.
func (c course) first(rcpt smtp.Address) (way, bool) {
	for i := range c.next {
		to := &c.next[i]
		if to.Err != nil {
			c.passOver(to, to.Err.Error(), time.Now())
			continue
		}
		w := way{upstream: to.Upstream}
		if to.Upstream == nil {
			w.domain = rcpt.DomainKey()
		}
		w.key = queue.Way(to.Name, w.domain)
		c.name, c.next = to.Name, c.next[i+1:]
		w.course = c
		return w, true
	}
	return way{}, false
}

// passOver notes a way that is not asked, and why. One that may not send as the sender has
// nothing to say about what others lack.
func (c *course) passOver(w *route.Way, why string, at time.Time) {
	l := queue.LeftWay{Way: w.Name, Reply: why, At: at}
	if upstream.IsSender(w.Err) {
		l.Scope = string(upstream.ScopeSender)
	} else {
		c.unasked = true
	}
	c.note(l)
}

// note adds a way that was left.
func (c *course) note(l queue.LeftWay) {
	left := []queue.LeftWay{l}
	if c.left != nil {
		left = append(slices.Clone(*c.left), l)
	}
	c.left = &left
}

// leftText says which ways were left and why, for the log.
func leftText(left *[]queue.LeftWay) string {
	if left == nil {
		return ""
	}
	texts := make([]string, len(*left))
	for i, l := range *left {
		texts[i] = l.Way + ": " + l.Reply
	}
	return strings.Join(texts, "; ")
}

// hasNext reports that the attempt may go on to another way.
func (j *job) hasNext() bool {
	return slices.ContainsFunc(j.next, func(w route.Way) bool { return w.Err == nil }) && !j.Exhausted()
}

// leave ends a job at its way: rest, a part of its recipients, goes on to the next one in the same
// attempt or, if there is none, is settled as the others are. outcomes are what this way means
// for all.
func (e *Engine) leave(j *job, rest []queue.Recipient, outcomes []queue.Outcome, err error) {
	if len(rest) == 0 || len(j.next) == 0 && j.left == nil {
		e.settle(j, j.rcpts, outcomes, err)
		e.end(j)
		return
	}
	if len(rest) < len(j.rcpts) {
		outcomes = e.settleBut(j, outcomes, rest)
	}
	switch {
	case !j.hasNext():
		e.giveUpOn(j, outcomes, err)
	case e.closing():
		e.release(j, 0) // to another node, for all its ways
	default:
		e.goOn(j, outcomes, err)
	}
}

// leave notes what the way that is left has said.
func (c *course) leave(outcomes []queue.Outcome) {
	best := make(map[int]queue.Outcome, len(outcomes))
	for _, o := range outcomes {
		if before, known := c.best[o.N]; known {
			o = better(before, o)
		}
		best[o.N] = o
	}
	c.best = best
	o := &outcomes[0]
	c.note(queue.LeftWay{Way: o.Upstream, Host: o.RemoteMTA, Reply: o.Reply.String(), Scope: o.Scope, At: o.At})
}

// goOn has a job go on to its next way.
func (e *Engine) goOn(j *job, outcomes []queue.Outcome, err error) {
	j.course.leave(outcomes)
	if j.Begun.IsZero() {
		j.Begun = time.Now()
	}
	j.returned, j.trial = time.Time{}, false
	e.cfg.Log.Info("going on to the next way", "id", j.Message.ID, "from", outcomes[0].Upstream, "reply", outcomes[0].Reply.String(), "error", err,
		"after_ms", time.Since(j.Begun).Milliseconds())
	if !put(&e.intake, &e.intake.jobs, j) {
		e.release(j, 0)
	}
}

// giveUpOn settles a job whose ways are exhausted.
func (e *Engine) giveUpOn(j *job, outcomes []queue.Outcome, err error) {
	c, at := j.course, outcomes[0].At
	c.leave(outcomes)
	for i := range c.next {
		w, reply := &c.next[i], "not tried: the attempt had used up its addresses, sessions or time"
		if w.Err != nil {
			reply = w.Err.Error()
		}
		c.passOver(w, reply, at)
	}
	outcomes = make([]queue.Outcome, len(j.rcpts))
	for i := range j.rcpts {
		o := c.best[j.rcpts[i].N]
		if o.Result == queue.Failed && c.unasked {
			o.Result, o.RetryIn = queue.Deferred, retryWait(e.cfg.Schedule, j.rcpts[i].Attempts, j.Message.ID)
		}
		o.WaitsFor = waitsFor(&o)
		if i > 0 && o.Upstream == outcomes[i-1].Upstream {
			o.Left = outcomes[i-1].Left // so that they are recorded together
		} else {
			others := slices.DeleteFunc(slices.Clone(*c.left), func(l queue.LeftWay) bool { return l.Way == o.Upstream })
			o.Left = &others
			e.awaits(o.WaitsFor, *c.left)
		}
		outcomes[i] = o
	}
	e.settle(j, j.rcpts, outcomes, err)
	e.end(j)
}

// better is what two ways together mean for a recipient: it waits if either may take it later,
// with the more informative reply, until the first of them may.
func better(first, second queue.Outcome) queue.Outcome {
	o, other := first, second
	if informs(second) > informs(first) {
		o, other = second, first
	}
	if other.Result != queue.Deferred {
		return o
	}
	soon, late := o, other
	if other.RetryIn < o.RetryIn {
		soon, late = other, o
	}
	if o.WaitsFor, o.RetryIn = soon.WaitsFor, soon.RetryIn; o.WaitsFor == "" && !budget.IsWay(late.WaitsFor) {
		o.WaitsFor = late.WaitsFor // that wait may end sooner; one for a turn does not
	}
	return o
}

// informs grades how much an outcome tells: least that a way lacks something, then that nothing was
// tried, then a reply of ours, most a server's. Of two alike, the one about account or sender tells
// more.
func informs(o queue.Outcome) int {
	grade := 6
	switch {
	case o.Result == queue.Failed:
		grade = 0
	case o.NotAnAttempt:
		grade = 2
	case o.Ours:
		grade = 4
	}
	if upstream.Scope(o.Scope).OfAccount() {
		grade++
	}
	return grade
}

// advance gives a job that has left its way to the destinations of the next one. Only the
// dispatcher calls it.
func (e *Engine) advance(j *job) {
	var g grouping
	for i := range j.rcpts {
		w, ok := j.first(j.rcpts[i].Address)
		if !ok { // hasNext was true, and next does not change
			e.release(j, 0)
			return
		}
		to := g.find(w)
		to.rcpts = appendRecipient(to.rcpts, j.rcpts, i)
	}
	e.handOut(*j, g.ways)
}

// away lists the recipients that go on to another way in the same attempt, as far as there is
// one and no host of this destination takes them. Those that were too many go with others, or
// when there is no conversation any more.
func (t *transaction) away(j *job, outcomes []queue.Outcome) []queue.Recipient {
	some := t.res.Err != nil
	for i := range outcomes {
		some = some || t.leaves(i, &outcomes[i])
	}
	return j.those(func(i int) bool {
		return t.leaves(i, &outcomes[i]) || some && outcomes[i].Result == queue.Deferred && t.tooMany(i)
	})
}

// leaves reports that another way may take recipient i, with outcome o: this one put it off
// before the final dot for a reason that is not the recipient's, or lacks what it needs, or the
// account or the sender was refused for good. Else the message may be there, or the
// recipient has its answer.
func (t *transaction) leaves(i int, o *queue.Outcome) bool {
	reply, stage := t.res.Replies[i], t.res.Stages[i]
	switch {
	case t.res.Withheld(i):
		return accountRefused(t.replies, &t.res) != nil
	case complete(reply) && stage == smtp.StageHello:
		return true
	case o.Result != queue.Deferred:
		return false
	case !complete(reply):
		return !t.res.DotSent
	}
	scope := judge(t.replies, &t.res, i).Scope
	switch stage {
	case smtp.StageDot:
		return reply.IsPermanent() && scope.OfAccount()
	case smtp.StageRcpt:
		return scope != upstream.ScopeRecipient
	}
	return true
}

// contains reports that all of some are in list; both are in the order of their numbers.
func contains(list, some []queue.Recipient) bool {
	for i := range list {
		if len(some) > 0 && some[0].N == list[i].N {
			some = some[1:]
		}
	}
	return len(some) == 0
}
