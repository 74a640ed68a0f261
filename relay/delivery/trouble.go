package delivery

import (
	"cmp"
	"errors"
	"net/netip"
	"time"

	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/budget"
)

// trouble is why no conversation with a destination was possible. It concerns the destination
// and all its waiting mail.
type trouble struct {
	reply     smtp.Reply // the server's, or one made up
	said      bool       // it is the server's
	permanent bool       // the recipients fail: there is no such domain, or it takes no mail
	err       error      // the cause, for the log
	host      string     // the host that was talked to, "" if none
	addr      netip.AddrPort
	tls       string
	greeted   bool // EHLO was answered
	closed    bool // the host says that it takes no mail, ever (RFC 7504), and so do all others
	crowded   bool // it is ours: the address has all the connections that it may, or the machine has no room for one
	badToken  bool // the upstream took no token
	ofUser    bool // conversations that carried one user's messages broke off, and no others

	spent              // to meet it
	wait  *budget.Wait // crowded by the upstream's budget of sessions
}

// outcome is what t means for one recipient, whose destination is left alone for
// away. It fails if no host of the domain takes mail and they said so the last time too.
func (t *trouble) outcome(d *destination, j *job, rcpt *queue.Recipient, away time.Duration) queue.Outcome {
	now := time.Now()
	o := queue.Outcome{
		Message: j.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: j.Epoch,
		Result: queue.Deferred, Reply: t.reply, Ours: !t.said,
		RemoteMTA: t.host, RemoteIP: t.addr, TLS: t.tls, Upstream: d.via,
		StartedAt: now, At: now,
	}
	if t.closed && rcpt.LastCode == codeClosed {
		o.Result, o.Ours, o.Reply = queue.Failed, true, smtp.Permanent(556, 3, 2, "mail host "+t.host+" takes no mail: "+smtp.Excerpt(t.reply.String()))
		return o
	}
	if t.permanent {
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

// about is what t concerns, the host unless its reply or where it came says otherwise, and the
// wait that the table of replies has for it, if any.
func (t *trouble) about(replies *upstream.Replies) (upstream.Scope, time.Duration) {
	stage := tableStage(t.stage())
	if t.said {
		if v := replies.Classify(stage, t.reply); !v.Scope.OfMail() {
			return v.Scope, v.Wait()
		}
	}
	if stage == upstream.StageAuth {
		return upstream.ScopeAccount, 0
	}
	return upstream.ScopeHost, 0
}

// waiting is what t means for a recipient that comes while its destination is left alone.
func (t *trouble) waiting(d *destination, j *job, rcpt *queue.Recipient, until time.Time) queue.Outcome {
	now := time.Now()
	text := "waits for " + d.key + ", left alone until " + until.UTC().Format(time.TimeOnly) + " UTC after " + smtp.Excerpt(t.reply.String())
	schedule := d.e.cfg.Schedule
	waits := d.key
	scope, _ := t.about(j.replies)
	if t.ofUser {
		waits = ""
	}
	return queue.Outcome{
		Message: j.Message.ID, N: rcpt.N, Recipient: rcpt.Address, Epoch: j.Epoch,
		Result: queue.Deferred, Reply: smtp.Temporary(451, 4, 1, text), Ours: true, Upstream: d.via,
		StartedAt: now, At: now, NotAnAttempt: true, WaitsFor: waits, Scope: string(scope),
		RetryIn: max(until.Sub(now), retryWait(schedule, stepAt(schedule, now.Sub(j.Message.AcceptedAt)), j.Message.ID)),
	}
}

// outranks reports that t is a better reason than other for not reaching a destination: a
// server's reply is worth more than silence, and a host that may yet take mail more than
// one that never does.
func (t *trouble) outranks(other *trouble) bool {
	return other == nil || other.permanent || t.rank() > other.rank()
}

func (t *trouble) rank() int {
	switch {
	case t.permanent:
		return 0
	case t.closed:
		return 1
	case !t.addr.IsValid():
		return 2
	}
	return 3
}

// codeClosed is the greeting of a host that takes no mail (RFC 7504 section 3).
const codeClosed = 521

// isClosed reports such a greeting of a mail host. At an upstream, its admin has to correct
// it.
func isClosed(to target, err error) bool {
	var stage *smtp.StageError
	return to.upstream == nil && errors.As(err, &stage) && stage.Stage == smtp.StageGreeting && stage.Reply.Code == codeClosed
}
