package delivery

import (
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"postern/relay/connect"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/route"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// parcel is a delivery whose jobs are under way.
type parcel struct {
	*queue.Delivery
	size   int64
	octets int64        // of its body, as far as they are in memory
	weight int64        // what it counts for in load
	jobs   atomic.Int32 // that have not ended
	signed signed
}

// job is one message for recipients of one destination, sent in one transaction.
// It holds the body by one reference until it ends.
type job struct {
	*parcel
	rcpts  []queue.Recipient
	octets int64 // its part of the memory, the whole body
	// again says that the job was begun anew, without an attempt being counted, after a
	// conversation that broke off in the middle of it.
	again bool
	// trial says that it is sent although the breaker of its upstream is open, to see whether that may
	// close.
	trial bool
	// returned is when it was first put back since neither a kept connection nor a new one
	// took it, zero before.
	returned      time.Time
	connect.Spent                   // by the attempt
	replies       *upstream.Replies // what those of its upstream mean; nil: MX
	course
}

func (j *job) address(i int) smtp.Address { return j.rcpts[i].Address }

// each makes an outcome for each recipient.
func (j *job) each(outcome func(*queue.Recipient) queue.Outcome) []queue.Outcome {
	outcomes := make([]queue.Outcome, len(j.rcpts))
	for i := range j.rcpts {
		outcomes[i] = outcome(&j.rcpts[i])
	}
	return outcomes
}

// those lists the recipients that are wanted, nil for none.
func (j *job) those(wanted func(i int) bool) (list []queue.Recipient) {
	for i := range j.rcpts {
		if wanted(i) {
			list = append(list, j.rcpts[i])
		}
	}
	return list
}

func (p *parcel) user() userOf { return userOf(p.Message.UserID) }

// way is the destination of some recipients of a delivery.
type way struct {
	key      string // queue.Way
	domain   string // mx: the domain's key
	upstream *upstream.Account
	rcpts    []queue.Recipient
	course
}

// dispatch splits a delivery into jobs and gives them to their destinations.
func (e *Engine) dispatch(d *queue.Delivery) {
	if e.closing() {
		e.handBack(d, 0)
		return
	}
	var ways []way
	if e.cfg.Guard.Try("delivery: routing", func() error { ways = e.split(d); return nil }) != nil {
		e.handBack(d, bodyWait)
		return
	}
	p := &parcel{Delivery: d, size: d.Body.Size(), octets: e.weight(d.Body.Size()), weight: e.weightOf(d)}
	if len(ways) == 0 {
		d.Body.Drop()
		e.load.sub(p.user(), p.weight)
		return
	}
	p.jobs.Store(1)
	e.handOut(job{parcel: p}, ways)
}

// handOut divides a job among the destinations of its recipients, of at most perTransaction
// each. Only the dispatcher calls it.
func (e *Engine) handOut(j job, ways []way) {
	jobs := 0
	for i := range ways {
		most := e.perTransaction(ways[i].upstream)
		jobs += (len(ways[i].rcpts) + most - 1) / most
	}
	if more := jobs - 1; more > 0 {
		j.weight += jobWeight * int64(more)
		e.load.grow(j.user(), jobWeight*int64(more))
		j.jobs.Add(int32(more))
		for range more {
			j.Body.Retain()
		}
	}
	for i := range ways {
		e.assign(j, &ways[i])
	}
}

// perTransaction is the most recipients of one transaction.
func (e *Engine) perTransaction(u *upstream.Account) int {
	most := e.bounds.Load().PerTransaction
	if u != nil && u.MaxRecipients > 0 {
		most = u.MaxRecipients
	}
	if e.budgeted(u) {
		most = budget.Fits(u.Budget, most)
	}
	return most
}

// assign makes the jobs of one way.
func (e *Engine) assign(j job, w *way) {
	dest, most := e.destination(w, j.Message.TLSNeed), e.perTransaction(w.upstream)
	up := w.upstream
	if j.best != nil {
		up = nil // of when the attempt began: it may have been changed since
	}
	j.course, j.replies = w.course, nil
	if w.upstream != nil {
		j.replies = w.upstream.Replies
	}
	for rest := w.rcpts; len(rest) > 0; {
		n, part := min(len(rest), most), j
		part.rcpts, part.octets = rest[:n:n], j.parcel.octets+recipientsWeigh(rest[:n])
		dest.add(&part, up)
		rest = rest[n:]
	}
}

// split groups the recipients by destination. Those without a known way are settled here.
func (e *Engine) split(d *queue.Delivery) []way {
	var g grouping
	for i := range d.Recipients {
		rcpt := &d.Recipients[i]
		if rcpt.Suppressed {
			e.suppressed(d, rcpt)
			continue
		}
		w, err := e.resolve(d, rcpt)
		if err != nil {
			e.unroutable(d, rcpt, err)
			continue
		}
		to := g.find(w)
		to.rcpts = appendRecipient(to.rcpts, d.Recipients, i)
	}
	return g.ways
}

// grouping holds ways by their keys and courses. Most messages have one way, for which it
// needs no index.
type grouping struct {
	ways  []way
	index map[groupKey]int // nil while there is one way at most
}

type groupKey struct {
	key   string
	route int64
}

func (w *way) group() groupKey { return groupKey{w.key, w.route} }

// find returns the way equal to w, which is w itself the first time. The result is valid
// until the next call.
func (g *grouping) find(w way) *way {
	last := len(g.ways) - 1
	if last >= 0 && g.ways[last].group() == w.group() {
		return &g.ways[last]
	}
	if last >= 0 {
		if g.index == nil {
			g.index = map[groupKey]int{g.ways[0].group(): 0}
		}
		if at, known := g.index[w.group()]; known {
			return &g.ways[at]
		}
		g.index[w.group()] = last + 1
	}
	g.ways = append(g.ways, w)
	return &g.ways[last+1]
}

// appendRecipient adds recipient i of all to list, which is a part of all for as
// long as its recipients are neighbours, and a copy afterwards.
func appendRecipient(list, all []queue.Recipient, i int) []queue.Recipient {
	if len(list) == 0 {
		return all[i : i+1 : i+1]
	}
	start := i - len(list)
	if start >= 0 && &all[start] == &list[0] {
		return all[start : i+1 : i+1]
	}
	return append(list, all[i]) // its capacity is its length: this copies
}

// resolve finds the way of one recipient.
func (e *Engine) resolve(d *queue.Delivery, rcpt *queue.Recipient) (way, error) {
	if rcpt.StaysWith != "" {
		return e.stay(rcpt)
	}
	decision, err := e.cfg.Routes.Resolve(e.work, d.Message.UserID, d.Message.Sender, rcpt.Address)
	if err != nil {
		return way{}, err
	}
	c := course{next: decision.Ways}
	if len(decision.Ways) > 1 {
		c.route = decision.Route
	}
	if w, ok := c.first(rcpt.Address); ok {
		return w, nil
	}
	_, err = decision.First()
	return way{}, noWay(decision.Ways, err)
}

// noWayError is why the way that tells the most cannot be used, and why the others cannot.
type noWayError struct {
	error
	left *[]queue.LeftWay
}

func (e *noWayError) Unwrap() error { return e.error }

// noWay is the error of ways none of which can be used.
func noWay(ways []route.Way, err error) error {
	var others course
	named := false
	for i := range ways {
		if text := ways[i].Err.Error(); named || text != err.Error() {
			others.passOver(&ways[i], text, time.Now())
		} else {
			named = true
		}
	}
	return &noWayError{err, others.left}
}

// stay is the way of a recipient in doubt, whatever the routes say.
func (e *Engine) stay(rcpt *queue.Recipient) (way, error) {
	only, err := e.cfg.Routes.Named(e.work, rcpt.StaysWith)
	if err != nil {
		return way{}, err
	}
	c := course{next: []route.Way{only}}
	w, ok := c.first(rcpt.Address)
	if !ok {
		return way{}, fmt.Errorf("it stays with %s, which may have it: %w", rcpt.StaysWith, only.Err)
	}
	return w, nil
}

// routeWait is the wait of a recipient without a way, and pausedWait of one whose upstream is
// paused: a new route, or the end of the pause, makes it due.
const (
	routeWait  = time.Minute
	pausedWait = 10 * time.Minute
)

// unroutable gives back a recipient for whom there is no route, or none can be read now.
// That does not count as an attempt: no server was asked.
func (e *Engine) unroutable(d *queue.Delivery, rcpt *queue.Recipient, err error) {
	if e.closing() { // Shutdown cut the question off
		e.cfg.Queue.Release(d, []int{rcpt.N}, 0)
		return
	}
	now := time.Now()
	o := queue.Outcome{
		Message: d.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: d.Epoch, Result: queue.Deferred,
		StartedAt: now, At: now, RetryIn: pausedWait, NotAnAttempt: true, StaysWith: rcpt.StaysWith,
	}
	paused, isPaused := errors.AsType[*upstream.PausedError](err)
	broken, isBroken := errors.AsType[*upstream.UnusableError](err)
	other, isOther := errors.AsType[*upstream.SenderError](err)
	switch {
	case isPaused:
		o.Scope = string(upstream.ScopeHost)
		o.Reply, o.WaitsFor, o.Upstream = smtp.Temporary(451, 3, 2, "upstream "+paused.Upstream+" is paused"), queue.Way(paused.Upstream, ""), paused.Upstream
	case rcpt.StaysWith != "":
		o.Reply = smtp.Temporary(451, 3, 2, "it waits for "+rcpt.StaysWith+", which may have it but cannot be used")
		o.WaitsFor, o.Upstream = queue.Way(rcpt.StaysWith, rcpt.Address.DomainKey()), rcpt.StaysWith
	case isBroken: // at this node
		o.Reply, o.WaitsFor = smtp.Temporary(451, 3, 2, "upstream "+broken.Upstream+" cannot be used by this server"), queue.Way(broken.Upstream, "")
		o.Scope, o.RetryIn, o.Upstream = string(upstream.ScopeAccount), routeWait, broken.Upstream
	case isOther:
		o.Reply, o.WaitsFor = smtp.Temporary(451, 4, 4, "no route for this sender: upstream "+other.Upstream+" may not send as this sender"), queue.Route
		o.Scope, o.RetryIn, o.Upstream = string(upstream.ScopeSender), routeWait, other.Upstream
	default:
		o.Reply, o.WaitsFor, o.RetryIn = smtp.Temporary(451, 4, 4, "no route is known for this recipient"), queue.Route, routeWait
	}
	if none, is := errors.AsType[*noWayError](err); is && none.left != nil {
		o.Left = none.left
		o.Reply.Text += "; " + leftText(o.Left)
	}
	e.record(d, rcpt, o, err)
}

// suppressed fails a recipient that gets no mail, of which its client was not to be told at RCPT.
func (e *Engine) suppressed(d *queue.Delivery, rcpt *queue.Recipient) {
	now := time.Now()
	e.record(d, rcpt, queue.Outcome{Message: d.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: d.Epoch, Result: queue.Suppressed, Ours: true,
		Reply: smtp.Permanent(550, 1, 1, "This address is suppressed; nothing was sent"), StartedAt: now, At: now}, nil)
}

// record logs and settles a single outcome.
func (e *Engine) record(d *queue.Delivery, rcpt *queue.Recipient, o queue.Outcome, err error) {
	e.logAttempts(&d.Message, []queue.Recipient{*rcpt}, []queue.Outcome{o}, err)
	e.cfg.Queue.Settle(o)
}

// settle logs and settles the outcomes of a job, rcpts[i] being that of
// outcomes[i]. It does not end the job.
func (e *Engine) settle(j *job, rcpts []queue.Recipient, outcomes []queue.Outcome, err error) {
	e.takeTurns(rcpts, outcomes)
	for i := range outcomes {
		o := &outcomes[i]
		o.WaitsFor = waitsFor(o)
		if o.Left == nil {
			o.Left = j.left
		}
		if text := leftText(o.Left); o.NotAnAttempt && text != "" { // the history has no line for them
			o.Reply.Text += "; " + text
		}
		if o.StaysWith = rcpts[i].StaysWith; o.Unknown && o.StaysWith == "" {
			o.StaysWith = o.Upstream
		}
	}
	if len(outcomes) > 0 {
		e.logAttempts(&j.Message, rcpts, outcomes, err)
		e.cfg.Queue.Settle(outcomes...)
	}
}

// release gives a whole job back without an attempt and ends it.
func (e *Engine) release(j *job, wait time.Duration) {
	e.cfg.Queue.Release(j.Delivery, numbers(j.rcpts), wait)
	e.end(j)
}

// end drops the job's reference to the body.
func (e *Engine) end(j *job) {
	j.Body.Drop()
	if j.jobs.Add(-1) == 0 {
		e.load.sub(j.user(), j.weight)
	}
}

// logAttempts logs outcomes of a message, rcpts[i] being that of outcomes[i].
func (e *Engine) logAttempts(m *queue.Message, rcpts []queue.Recipient, outcomes []queue.Outcome, err error) {
	id := m.ID.String()
	e.cfg.Events.Attempts(func(yield func(maillog.AttemptEnd) bool) {
		for i := range outcomes {
			o := &outcomes[i]
			if !yield(maillog.AttemptEnd{
				ID:                id,
				Recipient:         o.Recipient,
				Result:            string(o.Result),
				Reply:             o.Reply,
				RemoteMTA:         o.RemoteMTA,
				RemoteIP:          o.RemoteIP,
				TLS:               o.TLS,
				Upstream:          o.Upstream,
				SentAs:            o.SentAs,
				Scope:             o.Scope,
				Left:              leftText(o.Left),
				Attempt:           rcpts[i].Attempts + 1,
				Elapsed:           o.At.Sub(o.StartedAt),
				RetryIn:           o.RetryIn,
				PossibleDuplicate: rcpts[i].PossibleDuplicate || o.Unknown,
				Err:               err,
				Age:               o.At.Sub(m.AcceptedAt),
				NotAnAttempt:      o.NotAnAttempt,
				OutcomeUnknown:    o.Unknown,
			}) {
				return
			}
		}
	})
}
