package delivery

import (
	"errors"
	"net"
	"strings"
	"time"

	"postern/relay/queue"
	"postern/relay/smtp"
)

// classify turns the result of a transaction into one outcome for each recipient.
// facts holds what all have in common, retryIn the wait after so many attempts.
//
// A complete 2yz to the final dot is delivered, a complete 5yz failed, a complete
// 4yz deferred, whatever its enhanced code claims. All else is deferred, and once
// the dot was sent also unknown: the next attempt may make a second copy.
//
// A refusal in the middle of the message answers none of our commands. It is believed if the
// previous attempt ended with the same one.
func classify(facts queue.Outcome, rcpts []queue.Recipient, res smtp.Result, retryIn func(int) time.Duration) []queue.Outcome {
	outcomes := make([]queue.Outcome, len(rcpts))
	interruption := interruptionIn(res)
	for i := range rcpts {
		o := &outcomes[i]
		*o = facts
		o.N, o.Recipient = rcpts[i].N, rcpts[i].Address
		if i < len(res.Replies) {
			o.Reply = res.Replies[i]
			o.Ours = i < len(res.Stages) && res.Stages[i] == smtp.StageHello // this recipient was not sent to it
		}
		o.Result = judge(o.Reply, res.DotSent, facts.Upstream != viaMX)
		if o.Result == queue.Failed && isTooMany(res, i) {
			o.Result = queue.Deferred
		}
		if o.Result == queue.Deferred && (!complete(o.Reply) || o.Reply.IsPositive()) {
			o.Unknown = res.DotSent
			o.Reply, o.Ours = troubleReply(res)
			if !interruption.IsZero() && interruption.Code == rcpts[i].LastCode && rcpts[i].LastMidText {
				o.Result = judge(interruption, false, facts.Upstream != viaMX)
			}
		}
		switch o.Result {
		case queue.Delivered:
			o.DSNPassed = res.DSN
		case queue.Deferred:
			o.RetryIn = retryIn(rcpts[i].Attempts)
		}
	}
	return outcomes
}

// interruptionIn is the server's refusal in the middle of a message, as some send when it
// becomes too large for them; the zero Reply if there was none.
// Codes that do not speak of mail (RFC 5321 section 4.2.1, x5z) may answer lines of the
// message, by a server that takes them for commands.
func interruptionIn(res smtp.Result) smtp.Reply {
	var stage *smtp.StageError
	var said *smtp.OutOfStepError
	if errors.As(res.Err, &stage) && stage.Stage == smtp.StageBody && errors.As(stage.Err, &said) && said.Said.Code/10 == 55 {
		return said.Said
	}
	return smtp.Reply{}
}

// viaMX is Outcome.Upstream of mail to MX.
const viaMX = "mx"

// judge decides what a reply means for its recipient.
func judge(r smtp.Reply, dotSent, upstream bool) queue.Result {
	switch {
	case r.IsPositive() && dotSent:
		return queue.Delivered
	case !r.IsPermanent(), r.Code == 552 && saysTooMany(r): // RFC 5321 section 4.5.3.1.10
		return queue.Deferred
	case upstream && aboutOurAccount(r):
		return queue.Deferred
	}
	return queue.Failed
}

func complete(r smtp.Reply) bool {
	return r.IsPositive() || r.IsTemporary() || r.IsPermanent()
}

// aboutOurAccount reports a refusal that concerns the relay's own authentication with its
// upstream (RFC 4954 section 6) and not the message: an administrator has to correct it.
func aboutOurAccount(r smtp.Reply) bool {
	switch r.Code {
	case 530, 534, 535, 538:
		return true
	}
	return false
}

// saysTooMany reports the enhanced code of "too many recipients" (RFC 3463 X.5.3).
func saysTooMany(r smtp.Reply) bool { return r.Enhanced.Subject == 5 && r.Enhanced.Detail == 3 }

// isTooMany reports that the server wants recipient i in another transaction. Servers
// word that in many ways: by 452, or by 552 as of old (RFC 5321 section 4.5.3.1.10), by
// any code with X.5.3, in words. It can only be meant where it has accepted others
// before; there a bare 552 is "too many" rather than a full mailbox, which will be the
// first in its transaction sooner or later.
func isTooMany(res smtp.Result, i int) bool {
	if i >= len(res.Stages) || res.Stages[i] != smtp.StageRcpt || !acceptedBefore(res, i) {
		return false
	}
	r := res.Replies[i]
	bare := r.Enhanced.IsZero() && (r.Code == 452 || r.Code == 552)
	return bare || saysTooMany(r) || strings.HasPrefix(strings.ToLower(r.Text), "too many recipients")
}

// acceptedBefore reports that the server accepted a recipient before recipient i, which
// has a reply of its own. The reply for an accepted one came later: the reply to DATA
// or to the dot, the last reply of a conversation that broke off, or nothing.
func acceptedBefore(res smtp.Result, i int) bool {
	for n := range i {
		switch res.Stages[n] {
		case smtp.StageData, smtp.StageDot, "":
			return true
		case smtp.StageRcpt:
			if res.Replies[n].Code == 421 {
				return true
			}
		}
	}
	return false
}

// further lists the recipients that get another transaction immediately, over the same
// connection: those that were too many where others were delivered, and those that the
// server's limits kept out of this one. Their number falls each time, so this ends. Where
// all were deferred, the next host may take all of them.
func (t *transaction) further(j *job, outcomes []queue.Outcome) []queue.Recipient {
	delivered, putOff := false, false
	for i := range outcomes {
		if outcomes[i].Result == queue.Delivered {
			delivered = true
		} else if !t.res.Withheld(i) && t.goesOn(i) {
			putOff = true
		}
	}
	next := t.onward()
	if t.res.Err != nil || !delivered && putOff && next.hasNext() {
		return nil
	}
	var rest []queue.Recipient
	for i := range outcomes {
		if t.res.Withheld(i) || delivered && isTooMany(t.res, i) {
			rest = append(rest, j.rcpts[i])
		}
	}
	if len(rest) == len(outcomes) {
		return nil
	}
	return rest
}

// inWords is where a conversation broke off, for the text of a made-up reply.
var inWords = map[smtp.Stage]string{
	smtp.StageConnect:  "while connecting",
	smtp.StageGreeting: "before the greeting",
	smtp.StageHello:    "after EHLO",
	smtp.StageTLS:      "after STARTTLS",
	smtp.StageAuth:     "after AUTH",
	smtp.StageMail:     "after MAIL",
	smtp.StageRcpt:     "after RCPT",
	smtp.StageData:     "after DATA",
	smtp.StageBody:     "while the message was being sent",
	smtp.StageDot:      "at the end of the message; it may have been delivered",
}

// troubleReply is the reply of a recipient for whom the server gave none: its reply about
// the conversation, or a 451 of ours for the trouble (RFC 5321 section
// 4.2.5 has a client treat a lost connection as a 451).
func troubleReply(res smtp.Result) (r smtp.Reply, ours bool) {
	var stage *smtp.StageError
	if !errors.As(res.Err, &stage) {
		return smtp.Temporary(451, 3, 0, "the attempt ended without a reply"), true
	}
	if complete(stage.Reply) && !stage.Reply.IsPositive() {
		return stage.Reply, false
	}
	if said := interruptionIn(res); !said.IsZero() {
		said.Text += queue.MidText
		return said, false
	}
	where := inWords[stage.Stage]
	if res.DotSent {
		where = inWords[smtp.StageDot]
	}
	if isTimeout(stage.Err) {
		return smtp.Temporary(451, 4, 2, "no answer in time "+where), true
	}
	if errors.Is(stage.Err, smtp.ErrOutOfStep) || errors.Is(stage.Err, smtp.ErrMalformedReply) {
		// The server decided nothing, but an admin wants to read this.
		return smtp.Temporary(451, 5, 0, "conversation lost "+where+", "+stage.Err.Error()), true
	}
	return smtp.Temporary(451, 4, 2, "conversation lost "+where), true
}

func isTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}
