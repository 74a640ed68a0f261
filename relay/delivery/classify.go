package delivery

import (
	"errors"
	"time"

	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/suppression"
	"postern/relay/upstream"
)

// judging is how the replies to a message are judged.
type judging struct {
	replies *upstream.Replies                // of the upstream; nil: of MX
	retryIn func(attempts int) time.Duration // the wait after so many attempts
}

// classify turns the result of a transaction into one outcome for each recipient.
// facts holds what all have in common.
//
// A complete 2yz to the final dot is delivered; the upstream's table says what a complete
// refusal means. All else is deferred, and once the dot was sent also unknown: the next attempt
// may make a second copy.
//
// A refusal in the middle of the message answers none of our commands. It is believed if the
// previous attempt ended with the same one.
func classify(facts queue.Outcome, rcpts []queue.Recipient, res smtp.Result, by judging) []queue.Outcome {
	outcomes := make([]queue.Outcome, len(rcpts))
	interruption, account := interruptionIn(res), accountRefused(by.replies, &res)
	for i := range rcpts {
		o := &outcomes[i]
		*o = facts
		o.N, o.Recipient = rcpts[i].N, rcpts[i].Address
		if i < len(res.Replies) {
			o.Reply = res.Replies[i]
			o.Ours = isOurReply(&res, i)
		}
		v := judge(by.replies, &res, i)
		if v.Result == upstream.Later && (!complete(o.Reply) || o.Reply.IsPositive()) {
			o.Unknown = res.DotSent
			o.Reply, o.Ours = troubleReply(res)
			v.Scope, o.MidText = upstream.ScopeConnection, !interruption.IsZero()
			if o.MidText && interruption.Code == rcpts[i].LastCode && rcpts[i].LastMidText {
				v = by.replies.Classify(upstream.StageData, interruption)
			}
		}
		if account != nil && (res.Withheld(i) || o.Reply.Code == 421 || v.InAnother()) {
			v = *account
		}
		by.conclude(o, rcpts[i].Attempts, v)
		if o.Result == queue.Delivered {
			o.DSNPassed = res.DSN
		}
		o.NoMailbox = by.replies == nil && o.Result == queue.Failed && !o.Ours && !o.MidText && isOfOne(&res, i) && suppression.NoMailbox(o.Reply)
	}
	return outcomes
}

// conclude writes a verdict into the outcome of a recipient.
func (by judging) conclude(o *queue.Outcome, attempts int, v upstream.Verdict) {
	switch v.Result {
	case upstream.Delivered:
		o.Result = queue.Delivered
		return
	case upstream.Never:
		o.Result = queue.Failed
		return
	}
	o.Result, o.RetryIn = queue.Deferred, by.retryIn(attempts)
	if wait := v.Wait(); wait > 0 {
		o.RetryIn = retryWait([]time.Duration{wait}, 0, o.Message)
	}
	if o.Unknown {
		o.RetryIn = max(o.RetryIn, queue.DoubtWait)
	}
	if !v.Scope.OfMail() {
		o.Scope = string(v.Scope)
	}
}

// judge says what the reply to recipient i means.
func judge(replies *upstream.Replies, res *smtp.Result, i int) upstream.Verdict {
	v := upstream.Verdict{Result: upstream.Later, Scope: upstream.ScopeMessage}
	switch {
	case i >= len(res.Replies):
	case res.DotSent && res.Replies[i].IsPositive():
		v.Result = upstream.Delivered
	case !isOurReply(res, i):
		return replies.Classify(stageOf(res, i), res.Replies[i])
	case res.Replies[i].IsPermanent():
		v.Result = upstream.Never
	}
	return v
}

// accountRefused is the verdict on a refusal at RCPT that concerns the account or the sender, nil if
// there was none. Recipients that were not named would have heard the same.
func accountRefused(replies *upstream.Replies, res *smtp.Result) *upstream.Verdict {
	for i, stage := range res.Stages {
		if stage != smtp.StageRcpt || res.Replies[i].Code == 421 {
			continue
		}
		if v := judge(replies, res, i); v.Scope.OfAccount() {
			return &v
		}
	}
	return nil
}

// isOurReply reports that recipient i was not named to the server: its reply is made up.
func isOurReply(res *smtp.Result, i int) bool {
	return i < len(res.Stages) && res.Stages[i] == smtp.StageHello
}

// isOfOne reports that the reply to recipient i was about no other recipient.
func isOfOne(res *smtp.Result, i int) bool {
	if i >= len(res.Stages) {
		return false
	}
	switch res.Stages[i] {
	case smtp.StageRcpt:
		return true
	case smtp.StageData, smtp.StageDot:
		return len(res.Stages) == 1
	}
	return false
}

// stageOf is where the reply to recipient i came.
func stageOf(res *smtp.Result, i int) upstream.Stage {
	switch {
	case i >= len(res.Stages) || res.Stages[i] == "":
		return upstream.StageAny
	case res.Stages[i] == smtp.StageRcpt && acceptedBefore(res, i):
		return upstream.StageMore
	}
	return connect.TableStage(res.Stages[i])
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

func complete(r smtp.Reply) bool {
	return r.IsPositive() || r.IsTemporary() || r.IsPermanent()
}

// acceptedBefore reports that the server accepted a recipient before recipient i, which
// has a reply of its own. The reply for an accepted one came later: the reply to DATA
// or to the dot, the last reply of a conversation that broke off, or nothing.
func acceptedBefore(res *smtp.Result, i int) bool {
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

// troubleReply is the reply of a recipient for whom the server gave none: its reply about
// the conversation, or one of ours for the trouble.
func troubleReply(res smtp.Result) (r smtp.Reply, ours bool) {
	var stage *smtp.StageError
	if !errors.As(res.Err, &stage) {
		return connect.Lost(res.Err), true
	}
	if complete(stage.Reply) && !stage.Reply.IsPositive() {
		return stage.Reply, false
	}
	if said := interruptionIn(res); !said.IsZero() {
		said.Text += " (said in the middle of the message)"
		return said, false
	}
	if res.DotSent {
		stage = &smtp.StageError{Stage: smtp.StageDot, Err: stage.Err}
	}
	return connect.Lost(stage), true
}
