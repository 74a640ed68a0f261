package delivery

import (
	"errors"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

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

// mayBeginAnew reports that the message may be sent once more on a new connection
// without an attempt being counted: a server that is restarted in the middle of a
// transaction is back within seconds. Its 421 on a new connection is a refusal.
func (t *transaction) mayBeginAnew(j *job) bool {
	var stage *smtp.StageError
	if j.hasNext() || !t.lost() || !errors.As(t.res.Err, &stage) {
		return false
	}
	if cut, again := t.cutShort(); cut {
		return again && !j.Exhausted()
	}
	return !j.again && (t.used || stage.Reply.IsZero())
}

// onward is the walk over the hosts that come next. Other addresses of the same host help
// only if the connection was lost.
func (t *transaction) onward(j *job) connect.Walk {
	next := t.conn.Walk
	if !t.conn.onward {
		next = next.Again(j.Spent)
	}
	if !t.lost() {
		next.LeaveHost()
	}
	return next
}

// elsewhere lists the recipients that another host of the destination, or a new connection,
// may take in the same attempt (RFC 5321 section 5.1).
func (t *transaction) elsewhere(j *job, outcomes []queue.Outcome) []queue.Recipient {
	if next := t.onward(j); !next.HasNext() && !t.mayBeginAnew(j) {
		return nil
	}
	var rest []queue.Recipient
	for i := range outcomes {
		if outcomes[i].Result != queue.Delivered && t.goesOn(i) {
			rest = append(rest, j.rcpts[i])
		}
	}
	return rest
}

// goesOn reports that another host may be asked about recipient i: this one put it off at
// MAIL, RCPT or DATA, gave no reply there, or lacks what it needs. A recipient that was
// refused for good does not go on, and none does after the final dot: the message may be
// there.
func (t *transaction) goesOn(i int) bool {
	reply, stage := t.res.Replies[i], t.res.Stages[i]
	switch {
	case !complete(reply):
		return !t.res.DotSent
	case stage == smtp.StageDot:
		return false
	case stage == smtp.StageHello:
		return true
	case stage == smtp.StageRcpt && t.conn.Walk.Upstream != nil:
		// Any other reply stands for all hosts of the upstream.
		return reply.Code == 421 || t.res.Err != nil && t.tooMany(i)
	}
	return reply.IsTemporary()
}

// tooMany reports that recipient i was one too many for this transaction.
func (t *transaction) tooMany(i int) bool {
	return t.res.Withheld(i) || judge(t.replies, &t.res, i).InAnother()
}

// away lists the recipients that go on to another way in the same attempt, as far as there is
// one and no host of this destination takes them. Those that were too many go with others, or
// when there is no conversation any more.
func (t *transaction) away(j *job, outcomes []queue.Outcome) (list []queue.Recipient) {
	some := t.res.Err != nil
	for i := range outcomes {
		some = some || t.leaves(i, &outcomes[i])
	}
	for i := range outcomes {
		if t.leaves(i, &outcomes[i]) || some && outcomes[i].Result == queue.Deferred && t.tooMany(i) {
			list = append(list, j.rcpts[i])
		}
	}
	return list
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

// nextHost goes on along a walk to the next host of the destination with the rest of a job, and
// reports whether one could be reached; trouble is why not, nil if no host is left.
func (w *worker) nextHost(j *job, t *transaction, next *connect.Walk) (bool, *trouble) {
	if !next.HasNext() || w.ctx.Err() != nil {
		return false, nil
	}
	w.hangUp()
	w.talking.Store(true)
	defer w.talking.Store(false)
	c, trouble := next.Next(w.ctx)
	if c == nil {
		w.d.e.cfg.Log.Info("no other host can be reached", "id", j.Message.ID, "after", t.conn.Host, "reply", trouble.Reply.String(), "error", trouble.Err)
		return false, asTrouble(trouble)
	}
	w.conn = &conn{Conn: c, version: t.conn.version, onward: true}
	w.d.connected(w)
	w.d.e.cfg.Log.Info("trying the next host", "id", j.Message.ID, "after", t.conn.Host, "host", c.Host)
	return true, nil
}
