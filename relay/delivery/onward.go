package delivery

import (
	"errors"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
)

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
	return j.those(func(i int) bool { return outcomes[i].Result != queue.Delivered && t.goesOn(i) })
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

// nextHost goes on along a walk to the next host of the destination with the rest of a job, and
// reports whether one could be reached; trouble is why not, nil if no host is left.
func (w *worker) nextHost(j *job, t *transaction, next *connect.Walk) (bool, *trouble) {
	if !next.HasNext() || w.ctx.Err() != nil {
		return false, nil
	}
	w.hangUp()
	w.talking.Store(true)
	defer w.talking.Store(false)
	c, why := next.Next(w.ctx)
	if c == nil {
		w.d.e.cfg.Log.Info("no other host can be reached", "id", j.Message.ID, "after", t.conn.Host, "reply", why.Reply.String(), "error", why.Err)
		return false, &trouble{Trouble: *why}
	}
	w.conn = &conn{Conn: c, opened: time.Now(), version: t.conn.version, onward: true}
	w.d.connected(w)
	w.d.e.cfg.Log.Info("trying the next host", "id", j.Message.ID, "after", t.conn.Host, "host", c.Host)
	return true, nil
}
