package delivery

import (
	"cmp"
	"math/rand/v2"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
)

// trouble is why no conversation with a destination was possible.
type trouble struct {
	connect.Trouble
	ofUser bool // conversations that carried one user's messages broke off, and no others

	breaker *breaker.State // it is open, which is all that is known here; else nil
}

// deferral is the outcome of a recipient with whom no transaction was begun, but for its reply.
func (d *destination) deferral(j *job, rcpt *queue.Recipient, now time.Time) queue.Outcome {
	return queue.Outcome{
		Message: j.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: j.Epoch, Upstream: d.via,
		Result: queue.Deferred, Ours: true, StartedAt: now, At: now,
	}
}

// outcome is what t means for one recipient, whose destination is left alone for
// away. It fails if no host of the domain takes mail and they said so the last time too.
func (t *trouble) outcome(d *destination, j *job, rcpt *queue.Recipient, away time.Duration) queue.Outcome {
	o := d.deferral(j, rcpt, time.Now())
	o.Reply, o.Ours, o.RemoteMTA, o.RemoteIP, o.TLS = t.Reply, !t.Said, t.Host, t.Addr, t.TLS
	if t.Closed && rcpt.LastCode == connect.CodeClosed {
		o.Result, o.Ours, o.Reply = queue.Failed, true, smtp.Permanent(556, 3, 2, "mail host "+t.Host+" takes no mail: "+smtp.Excerpt(t.Reply.String()))
		return o
	}
	if t.Permanent {
		o.Result = queue.Failed
		return o
	}
	scope, wait := t.about(j.replies)
	o.Scope = string(scope)
	if !t.ofUser {
		o.WaitsFor = d.key
	}
	o.RetryIn = max(away, cmp.Or(wait, retryWait(d.e.cfg.Schedule, rcpt.Attempts, j.Message.ID)))
	return o
}

// about is About, or what the breaker was opened for.
func (t *trouble) about(replies *upstream.Replies) (upstream.Scope, time.Duration) {
	if t.breaker != nil {
		return t.breaker.Scope, 0
	}
	return t.About(replies)
}

// waiting is what t means for a recipient that comes while its destination is left alone.
func (t *trouble) waiting(d *destination, j *job, rcpt *queue.Recipient, until time.Time) queue.Outcome {
	o, schedule := d.deferral(j, rcpt, time.Now()), d.e.cfg.Schedule
	why, wait := t.Reply.String(), retryWait(schedule, stepAt(schedule, o.At.Sub(j.Message.AcceptedAt)), j.Message.ID)
	if t.breaker != nil {
		why, wait = t.breaker.Reply, openWait+rand.N(openWait)
	}
	text := "waits for " + d.key + ", not used until " + until.UTC().Format(time.TimeOnly) + " UTC after " + smtp.Excerpt(why)
	scope, _ := t.about(j.replies)
	o.Reply, o.NotAnAttempt, o.Scope, o.RetryIn = smtp.Temporary(451, 4, 1, text), true, string(scope), max(until.Sub(o.At), wait)
	if !t.ofUser {
		o.WaitsFor = d.key
	}
	return o
}
