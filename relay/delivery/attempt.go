package delivery

import (
	"errors"
	"time"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// attempt sends one job over the open connection, settles it and returns what is
// to be sent at once after it, if anything.
func (w *worker) attempt(j *job) *job {
	started := time.Now()
	res := w.send(j)
	reused := w.conn.sent > 0
	w.conn.sent++
	facts := w.facts(j, started, time.Now())
	inText := w.inText.Swap(false)
	if res.Err != nil {
		w.dropConn()
	}
	switch {
	case res.Err != nil && !res.DotSent && w.gate != nil:
		// The epoch is no longer surely ours. Nothing was delivered.
		w.d.e.cfg.Log.Warn("final dot withheld", "id", j.Message.ID, "error", w.gate)
		w.giveBack(j, facts, res, gateWait)
	case res.Err != nil && !res.DotSent && w.body.err != nil:
		w.d.e.cfg.Log.Error("stored message cannot be read", "id", j.Message.ID, "error", w.body.err)
		w.giveBack(j, facts, res, bodyWait)
	case res.Err != nil && !res.DotSent && w.ctx.Err() != nil:
		w.giveBack(j, facts, res, 0) // Shutdown
	case reused && j.again < maxAgain && !inText && !res.DotSent && unheard(res):
		// The server had ended the idle connection before it heard of this message.
		j.again++
		w.job = nil
		w.d.putBack(j)
	default:
		return w.conclude(j, facts, res)
	}
	return nil
}

// send runs the transaction.
func (w *worker) send(j *job) smtp.Result {
	w.gate = nil
	w.body = bodyReader{from: j.Body, size: j.size, begun: &w.inText}
	w.rcpts = w.rcpts[:0]
	for i := range j.rcpts {
		r := &j.rcpts[i]
		w.rcpts = append(w.rcpts, smtp.RcptCommand{
			To: r.Address, Notify: r.Notify, ORcptType: r.ORcptType, ORcpt: r.ORcpt,
		})
	}
	m := &j.Message
	return w.conn.client.Send(w.ctx, smtp.Transaction{
		Mail: smtp.MailCommand{
			From: m.Sender, Size: j.size, Body: m.BodyType, UTF8: m.UTF8, Ret: m.Ret, EnvID: m.EnvID,
		},
		Rcpts:     w.rcpts,
		Body:      &w.body,
		Size:      j.size,
		BeforeDot: w.beforeDot,
	})
}

// unheard reports that the server took no notice of the transaction: the
// connection was closed, or 421 said (RFC 5321 section 3.8), in place of a reply
// to MAIL.
func unheard(res smtp.Result) bool {
	var stage *smtp.StageError
	if !errors.As(res.Err, &stage) || stage.Stage != smtp.StageMail {
		return false
	}
	return stage.Reply.Code == 421 || stage.Reply.IsZero() && !isTimeout(stage.Err)
}

// conclude classifies what the server said and settles it.
func (w *worker) conclude(j *job, facts queue.Outcome, res smtp.Result) *job {
	e := w.d.e
	outcomes := classify(facts, j.rcpts, res, w.retryIn(j))
	if res.Err != nil {
		w.d.brokeOff(&trouble{reply: troubleReply(res), err: res.Err, host: facts.RemoteMTA, addr: facts.RemoteIP, tls: facts.TLS})
	} else {
		w.d.succeeded()
	}
	if rest := tooMany(j.rcpts, outcomes); len(rest) > 0 {
		return w.sendRest(j, outcomes, rest)
	}
	w.job = nil // from here on it is not for abandon to settle
	e.settle(j, j.rcpts, outcomes, res.Err)
	e.end(j)
	return nil
}

// sendRest settles all recipients but rest, for whom the server wanted another
// transaction (RFC 5321 section 4.5.3.1.10), and returns the job for them. There is
// progress: some were delivered.
func (w *worker) sendRest(j *job, outcomes []queue.Outcome, rest []queue.Recipient) *job {
	settled := make([]queue.Outcome, 0, len(outcomes)-len(rest))
	of := make([]queue.Recipient, 0, cap(settled))
	next := 0
	for i := range outcomes {
		if next < len(rest) && rest[next].N == j.rcpts[i].N {
			next++
			continue
		}
		settled = append(settled, outcomes[i])
		of = append(of, j.rcpts[i])
	}
	j.rcpts = rest
	w.d.e.settle(j, of, settled, nil)
	return j
}

// giveBack releases a job whose dot was not sent for a reason of ours. Recipients
// that the server has refused already are settled by that.
func (w *worker) giveBack(j *job, facts queue.Outcome, res smtp.Result, wait time.Duration) {
	w.job = nil
	e := w.d.e
	var refused, free []queue.Recipient
	said := smtp.Result{}
	for i := range j.rcpts {
		if i < len(res.Replies) && (res.Replies[i].IsTemporary() || res.Replies[i].IsPermanent()) {
			refused = append(refused, j.rcpts[i])
			said.Replies = append(said.Replies, res.Replies[i])
		} else {
			free = append(free, j.rcpts[i])
		}
	}
	e.settle(j, refused, classify(facts, refused, said, w.retryIn(j)), nil)
	if len(free) > 0 {
		e.cfg.Queue.Release(j.Delivery, numbers(free), wait)
	}
	e.end(j)
}

// facts is what the outcomes of an attempt have in common.
func (w *worker) facts(j *job, started, ended time.Time) queue.Outcome {
	o := queue.Outcome{
		Message: j.Message.ID, Epoch: j.Epoch, Upstream: w.d.via, StartedAt: started, At: ended,
	}
	if w.conn != nil {
		o.RemoteMTA, o.RemoteIP, o.TLS = w.conn.host, w.conn.addr, w.conn.tls
	}
	return o
}

// retryIn is the schedule for a job's recipients by the attempts that they had.
func (w *worker) retryIn(j *job) func(attempts int) time.Duration {
	return func(attempts int) time.Duration {
		return retryWait(w.d.e.cfg.Schedule, attempts, j.Message.ID)
	}
}
