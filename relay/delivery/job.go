package delivery

import (
	"errors"
	"sync/atomic"
	"time"

	"postern/relay/maillog"
	"postern/relay/queue"
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
	// returned is when it was first put back since neither a kept connection nor a new one
	// took it, zero before.
	returned time.Time
	begun    time.Time         // the attempt, zero before
	replies  *upstream.Replies // what those of its upstream mean; nil: MX
}

func (p *parcel) user() userOf { return userOf(p.Message.UserID) }

// way is the destination of some recipients of a delivery.
type way struct {
	key      string // queue.Way
	domain   string // mx: the domain's key
	upstream *upstream.Account
	rcpts    []queue.Recipient
}

// dispatch splits a delivery into jobs and gives them to their destinations.
func (e *Engine) dispatch(d *queue.Delivery) {
	if e.closing.Load() {
		e.handBack(d, 0)
		return
	}
	var ways []way
	if e.cfg.Guard.Try("delivery: routing", func() error { ways = e.split(d); return nil }) != nil {
		e.handBack(d, bodyWait)
		return
	}
	p := &parcel{Delivery: d, size: d.Body.Size(), octets: e.weight(d.Body.Size()), weight: e.weightOf(d)}
	jobs := 0
	for i := range ways {
		most := e.perTransaction(ways[i].upstream)
		jobs += (len(ways[i].rcpts) + most - 1) / most
	}
	if jobs == 0 {
		d.Body.Drop()
		e.load.sub(p.user(), p.weight)
		return
	}
	if more := jobWeight * int64(jobs-1); more > 0 {
		p.weight += more
		e.load.grow(p.user(), more)
	}
	p.jobs.Store(int32(jobs))
	for range jobs - 1 {
		d.Body.Retain()
	}
	for i := range ways {
		e.assign(p, &ways[i])
	}
}

// perTransaction is the most recipients of one transaction.
func (e *Engine) perTransaction(u *upstream.Account) int {
	most := e.cfg.PerTransaction
	if u != nil && u.MaxRecipients > 0 {
		most = u.MaxRecipients
	}
	if e.budgeted(u) {
		most = budget.Fits(u.Budget, most)
	}
	return most
}

// assign makes the jobs of one way, of at most perTransaction recipients each.
func (e *Engine) assign(p *parcel, w *way) {
	dest, most := e.destination(w), e.perTransaction(w.upstream)
	var replies *upstream.Replies
	if w.upstream != nil {
		replies = w.upstream.Replies
	}
	for rest := w.rcpts; len(rest) > 0; {
		n := min(len(rest), most)
		dest.add(&job{parcel: p, rcpts: rest[:n:n], octets: p.octets + recipientsWeigh(rest[:n]), replies: replies}, w.upstream)
		rest = rest[n:]
	}
}

// split groups the recipients by destination. Those without a known way are settled here.
func (e *Engine) split(d *queue.Delivery) []way {
	var g grouping
	for i := range d.Recipients {
		rcpt := &d.Recipients[i]
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

// grouping holds ways by their keys. Most messages have one way, for which it
// needs no index.
type grouping struct {
	ways  []way
	index map[string]int // nil while there is one way at most
}

// find returns the way equal to w, which is w itself the first time. The result is valid
// until the next call.
func (g *grouping) find(w way) *way {
	last := len(g.ways) - 1
	if last >= 0 && g.ways[last].key == w.key {
		return &g.ways[last]
	}
	if last >= 0 {
		if g.index == nil {
			g.index = map[string]int{g.ways[0].key: 0}
		}
		if at, known := g.index[w.key]; known {
			return &g.ways[at]
		}
		g.index[w.key] = last + 1
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
	decision, err := e.cfg.Routes.Resolve(e.work, d.Message.UserID, d.Message.Sender, rcpt.Address)
	if err != nil {
		return way{}, err
	}
	first, err := decision.First()
	if err != nil {
		return way{}, err
	}
	if u := first.Upstream; u != nil {
		return way{key: queue.Way(u.Name, ""), upstream: u}, nil
	}
	domain := rcpt.Address.DomainKey()
	return way{key: queue.Way(viaMX, domain), domain: domain}, nil
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
	if e.work.Err() != nil { // Shutdown cut the question off
		e.cfg.Queue.Release(d, []int{rcpt.N}, 0)
		return
	}
	reply, wait := smtp.Temporary(451, 4, 4, "no route to this recipient is known now"), routeWait
	if paused, ok := errors.AsType[*upstream.PausedError](err); ok {
		reply, wait = smtp.Temporary(451, 3, 2, "upstream "+paused.Upstream+" is paused"), pausedWait
	}
	now := time.Now()
	e.record(d, rcpt, queue.Outcome{
		Message: d.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: d.Epoch,
		Result: queue.Deferred, Reply: reply,
		StartedAt: now, At: now, RetryIn: wait, NotAnAttempt: true,
	}, err)
}

// record logs and settles a single outcome.
func (e *Engine) record(d *queue.Delivery, rcpt *queue.Recipient, o queue.Outcome, err error) {
	e.logAttempts(&d.Message, []queue.Recipient{*rcpt}, []queue.Outcome{o}, err)
	e.cfg.Queue.Settle(o)
}

// settle logs and settles the outcomes of a job, rcpts[i] being that of
// outcomes[i]. It does not end the job.
func (e *Engine) settle(j *job, rcpts []queue.Recipient, outcomes []queue.Outcome, err error) {
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
				Scope:             o.Scope,
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
