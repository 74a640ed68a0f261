package delivery

import (
	"errors"
	"slices"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// attempt sends one job over the open connection, settles it and returns the job that is to
// be sent immediately after it, if any.
func (w *worker) attempt(j *job) *job {
	started := time.Now()
	if j.Begun.IsZero() {
		j.Begun = started
	}
	res, unsaid := w.send(j)
	if unsaid != nil {
		w.d.e.cfg.Log.Error("stored message cannot be rewritten or signed", "id", j.Message.ID, "error", unsaid)
		w.giveBack(j, w.facts(j, started, time.Now()), res, bodyWait)
		return nil
	}
	w.dotSent = res.DotSent
	used := w.conn.kept || w.conn.sent > 0
	w.conn.sent++
	facts := w.facts(j, started, time.Now())
	inText := w.inText.Swap(false)
	from := w.conn
	if res.Err != nil {
		w.dropConn()
	}
	switch {
	case res.Err != nil && !res.DotSent && w.gate != nil:
		// The epoch may no longer be ours. Nothing was delivered.
		w.d.e.cfg.Log.Warn("final dot withheld", "id", j.Message.ID, "error", w.gate)
		w.giveBack(j, facts, res, gateWait)
	case res.Err != nil && !res.DotSent && w.body.err != nil:
		w.d.e.cfg.Log.Error("stored message cannot be read", "id", j.Message.ID, "error", w.body.err)
		w.giveBack(j, facts, res, bodyWait)
	case res.Err != nil && !res.DotSent && w.d.e.closing() && w.ctx.Err() != nil:
		w.giveBack(j, facts, res, 0) // Shutdown
	case used && !inText && !res.DotSent && w.ctx.Err() == nil && unheard(res):
		// The server had ended the connection before it heard of this message.
		return w.afresh(j)
	default:
		return w.conclude(j, &transaction{res, facts, from, used, j.replies})
	}
	return nil
}

// send runs the transaction, of which the server hears nothing if there is an error.
func (w *worker) send(j *job) (smtp.Result, error) {
	w.gate, w.dotSent = nil, false
	w.body = bodyReader{from: j.Body, size: j.size, begun: &w.inText}
	w.rcpts = w.rcpts[:0]
	for i := range j.rcpts {
		r := &j.rcpts[i]
		w.rcpts = append(w.rcpts, smtp.RcptCommand{
			To: r.Address, Notify: r.Notify, ORcptType: r.ORcptType, ORcpt: r.ORcpt,
		})
	}
	m := &j.Message
	mail := smtp.MailCommand{From: m.Sender, Body: m.BodyType, UTF8: m.UTF8, Ret: m.Ret, EnvID: m.EnvID, RequireTLS: m.TLSNeed == smtp.TLSRequired}
	size, err := w.rewrite(j, &mail)
	if err == nil {
		size, err = w.sign(j, mail.From, size)
	}
	if err != nil {
		return smtp.Result{Err: err, Replies: make([]smtp.Reply, len(j.rcpts)), Stages: make([]smtp.Stage, len(j.rcpts))}, err
	}
	proved := mail.RequireTLS && w.conn.Proves()
	if _, offered := w.conn.Client.Extension("REQUIRETLS"); m.UserID == 0 && !(proved && offered) {
		mail.RequireTLS = false // a notice, which has nothing of its message: RFC 8689 section 5 lets it go
	}
	unsure := mail.RequireTLS && w.conn.Unsure(w.ctx)
	w.talking.Store(true)
	defer w.talking.Store(false)
	res := w.conn.Client.Send(w.ctx, smtp.Transaction{
		Mail:      mail,
		Rcpts:     w.rcpts,
		Body:      &w.body,
		Size:      size,
		Proved:    proved,
		Unsure:    unsure,
		EightBit:  m.EightBit,
		BeforeDot: w.beforeDot,
	})
	if w.count != nil && !unheard(res) && slices.ContainsFunc(res.Stages, func(s smtp.Stage) bool { return s != smtp.StageHello }) {
		w.count()
	}
	return res, nil
}

// transaction is one that has ended.
type transaction struct {
	res   smtp.Result
	facts queue.Outcome // what its outcomes have in common
	conn  *conn         // that it was sent over; closed if res has an error
	used  bool          // conn had carried mail, or waited for it, before

	replies *upstream.Replies // what they mean
}

// lost reports that the connection broke before the final dot was sent, or that the
// server took its leave. Silence is not meant: it would most likely be met again.
func (t *transaction) lost() bool {
	var stage *smtp.StageError
	return !t.res.DotSent && errors.As(t.res.Err, &stage) && !connect.IsTimeout(stage.Err) && !errors.Is(stage.Err, smtp.ErrOutOfStep) &&
		(stage.Reply.IsZero() || stage.Reply.Code == 421)
}

// cutShort reports that the server ended the conversation after it had refused something: it does
// so after too many errors (Postfix: smtpd_hard_error_limit), among which it counts commands that
// were sent behind a refused MAIL. The others may be named again over a new connection if a
// recipient is settled, so that they are fewer each time, and only mail was at fault.
func (t *transaction) cutShort() (cut, again bool) {
	settled, left := false, false
	for i, reply := range t.res.Replies {
		if !complete(reply) || reply.Code == 421 || t.res.Withheld(i) {
			left = true
			continue
		}
		cut = t.lost()
		settled = settled || !t.goesOn(i)
	}
	return cut, cut && settled && left && accountRefused(t.replies, &t.res) == nil
}

// unheard reports that the server took no notice of the transaction: in place of a
// reply to MAIL the connection was closed, nothing came at all, or the server took its
// leave, by 421 (RFC 5321 section 3.8) or by 451 4.4.2, as some do when a connection was idle.
func unheard(res smtp.Result) bool {
	var stage *smtp.StageError
	if errors.As(res.Err, &stage) {
		return stage.Stage == smtp.StageMail && (isLeave(stage.Reply) || stage.Reply.IsZero())
	}
	for i, stage := range res.Stages {
		if stage == smtp.StageMail {
			return isLeave(res.Replies[i])
		}
	}
	return false
}

// returnTime is how long a job may meet idle connections that have ended, one after the other,
// and get no new one: a restart takes less.
const returnTime = 10 * time.Second

func isLeave(r smtp.Reply) bool {
	return r.Code == 421 || r.Code == 451 && r.Enhanced.Subject == 4 && r.Enhanced.Detail == 2
}

// afresh tries a job whose connection had ended immediately over a new one: other idle
// connections may have ended too. If no connection can be made the job goes on to its next way,
// or waits in the line, where it may find another one that has ended. After returnTime it counts
// as an attempt.
func (w *worker) afresh(j *job) *job {
	w.hangUp()
	need, _ := w.d.need()
	need.spent = j.Spent
	var t *trouble
	if need.wait <= 0 && !w.d.e.closing() {
		var ok bool
		if ok, t = w.open(need); ok {
			return j
		}
	}
	w.job = nil
	if t != nil && !t.Crowded {
		if j.hasNext() || !j.returned.IsZero() && time.Since(j.returned) > returnTime {
			w.d.connectFailed(t, need.failures)
			w.d.giveUp([]*job{j}, t)
			return nil
		}
		if j.returned.IsZero() {
			j.returned = time.Now()
		}
	}
	if j.best == nil {
		j.Begun = time.Time{}
	}
	w.d.putBack(j)
	if t != nil {
		w.d.connectFailed(t, need.failures)
	}
	return nil
}

// conclude classifies the replies of the server and settles the recipients whose attempt is
// over.
func (w *worker) conclude(j *job, t *transaction) *job {
	e := w.d.e
	outcomes := classify(t.facts, j.rcpts, t.res, w.judging(j))
	t.spareWithheld(outcomes)
	cut, _ := t.cutShort()
	switch {
	case t.res.Err == nil:
		w.d.succeeded(j.user(), timeOf(outcomes))
		w.d.recovered(outcomes)
	case !cut:
		reply, ours := troubleReply(t.res)
		w.d.brokeOff(&trouble{Trouble: connect.Trouble{Reply: reply, Said: !ours, Err: t.res.Err, Host: t.facts.RemoteMTA, Addr: t.facts.RemoteIP, TLS: t.facts.TLS}}, j.user())
	}
	if r, said := t.wantsLess(cut); said {
		w.d.slowDown(r)
	}
	if n := t.room(); n > 0 {
		t.conn.Client.LimitRcpts(n)
	}
	w.d.tellEnded(j, t, outcomes)
	if rest := t.further(j, outcomes); len(rest) > 0 {
		e.settleBut(j, outcomes, rest)
		w.dotSent = false
		return j
	}
	walk, rest, away := t.onward(j), t.elsewhere(j, outcomes), t.away(j, outcomes)
	if len(rest) > 0 && contains(rest, away) {
		outcomes = e.settleBut(j, outcomes, rest)
		w.dotSent = false
		next, trouble := w.nextHost(j, t, &walk)
		if next {
			return j
		}
		if t.mayBeginAnew(j) {
			j.again = true
			return w.afresh(j)
		}
		if trouble != nil && !trouble.Permanent {
			w.waitForOthers(j, outcomes, trouble)
		}
	}
	w.job = nil // from here on abandon must not settle it
	j.Spent = walk.Spent
	e.leave(j, away, outcomes, t.res.Err)
	return nil
}

// waitForOthers defers recipients whose need this host lacks if another host, unreachable
// now, may have it. Size is not such a need: as a rule all hosts of a destination take the
// same.
func (w *worker) waitForOthers(j *job, outcomes []queue.Outcome, t *trouble) {
	for i := range outcomes {
		if o := &outcomes[i]; o.Result == queue.Failed && isNeed(o.Reply.Enhanced) {
			o.Result, o.RetryIn = queue.Deferred, w.judging(j).retryIn(j.rcpts[i].Attempts)
			o.Reply, o.Ours, o.RemoteMTA, o.RemoteIP, o.TLS = t.Reply, !t.Said, t.Host, t.Addr, t.TLS
		}
	}
}

// isNeed reports the code of a made-up reply about what a server lacks, but for the size that it takes.
func isNeed(code smtp.EnhancedCode) bool {
	return code.Subject == 6 || code.Subject == 7 && code.Detail == 30 // RFC 8689
}

// settleBut settles all recipients of a job but rest, which stays its job, and returns
// the outcomes of rest.
func (e *Engine) settleBut(j *job, outcomes []queue.Outcome, rest []queue.Recipient) []queue.Outcome {
	kept := make([]queue.Outcome, 0, len(rest))
	settled := make([]queue.Outcome, 0, len(outcomes)-len(rest))
	of := make([]queue.Recipient, 0, cap(settled))
	next := 0
	for i := range outcomes {
		if next < len(rest) && rest[next].N == j.rcpts[i].N {
			kept = append(kept, outcomes[i])
			next++
			continue
		}
		settled = append(settled, outcomes[i])
		of = append(of, j.rcpts[i])
	}
	j.rcpts = rest
	e.settle(j, of, settled, nil)
	return kept
}

// giveBack releases a job whose dot was not sent for a reason of ours. Recipients
// that the server has refused already are settled by that.
func (w *worker) giveBack(j *job, facts queue.Outcome, res smtp.Result, wait time.Duration) {
	w.job = nil
	e := w.d.e
	free := j.those(func(i int) bool {
		return !res.Replies[i].IsTemporary() && !res.Replies[i].IsPermanent() || res.Withheld(i)
	})
	if e.settleBut(j, classify(facts, j.rcpts, res, w.judging(j)), free); len(free) > 0 {
		e.release(j, wait)
	} else {
		e.end(j)
	}
}

// facts is the common part of an attempt's outcomes.
func (w *worker) facts(j *job, started, ended time.Time) queue.Outcome {
	o := queue.Outcome{
		Message: j.Message.ID, Epoch: j.Epoch, Upstream: w.d.via, StartedAt: started, At: ended,
	}
	if w.conn != nil {
		o.RemoteMTA, o.RemoteIP, o.TLS, o.SentAs = w.conn.Host, w.conn.Addr, w.conn.TLS, w.conn.sendsAs().String()
	}
	return o
}

// judging is how the replies to a job are judged.
func (w *worker) judging(j *job) judging {
	return judging{j.replies, func(attempts int) time.Duration { return retryWait(w.d.e.cfg.Schedule, attempts, j.Message.ID) }}
}
