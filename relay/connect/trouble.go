package connect

import (
	"errors"
	"net"
	"net/netip"
	"time"

	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
)

// Trouble is why no conversation with a destination was possible. It concerns the destination
// and all its waiting mail.
type Trouble struct {
	Reply     smtp.Reply // the server's, or one made up
	Said      bool       // it is the server's
	Permanent bool       // the recipients fail: there is no such domain, or it takes no mail
	Err       error      // the cause, for the log
	Host      string     // the host that was talked to, "" if none
	Addr      netip.AddrPort
	TLS       string
	Closed    bool // the host says that it takes no mail, ever (RFC 7504), and so do all others
	Crowded   bool // it is ours: the address has all the connections that it may, or the machine has no room for one

	Wait *budget.Wait // Crowded because the upstream's budget of sessions is spent; else nil

	greeted  bool // EHLO was answered
	badToken bool // the upstream took no token

	Spent // until t was met
}

// failure is permanent trouble.
func failure(reply smtp.Reply, err error) *Trouble {
	return &Trouble{Reply: reply, Permanent: true, Err: err}
}

// outranks reports that t is a better reason than other for not reaching a destination: a
// server's reply is worth more than silence, and a host that may yet take mail more than
// one that never does.
func (t *Trouble) outranks(other *Trouble) bool {
	return other == nil || other.Permanent || t.rank() > other.rank()
}

func (t *Trouble) rank() int {
	switch {
	case t.Permanent:
		return 0
	case t.Closed:
		return 1
	case !t.Addr.IsValid():
		return 2
	}
	return 3
}

// About is what t concerns, the host unless its reply or where it came says otherwise, and the
// wait that the table of replies has for it, if any.
func (t *Trouble) About(replies *upstream.Replies) (upstream.Scope, time.Duration) {
	stage := TableStage(t.Stage())
	if t.Said {
		if v := replies.Classify(stage, t.Reply); !v.Scope.OfMail() {
			return v.Scope, v.Wait()
		}
	}
	if stage == upstream.StageAuth {
		return upstream.ScopeAccount, 0
	}
	return upstream.ScopeHost, 0
}

// Cause is what t says about an upstream.
func (t *Trouble) Cause(replies *upstream.Replies) breaker.Cause {
	scope, wait := t.About(replies)
	return breaker.Cause{Stage: TableStage(t.Stage()), Scope: scope, Reply: t.Reply.String(), Wait: wait}
}

// OfMachine reports trouble of this machine, which another node may not have.
func (t *Trouble) OfMachine() bool {
	source := (*SourceError)(nil)
	return t.Crowded || errors.As(t.Err, &source)
}

// Stage says where the trouble was.
func (t *Trouble) Stage() smtp.Stage {
	var stage *smtp.StageError
	var lookup *resolver.Error
	switch {
	case t.Wait != nil:
		return StageBudget
	case errors.As(t.Err, &stage):
		return stage.Stage
	case upstream.IsSender(t.Err):
		return smtp.StageMail
	case errors.Is(t.Err, errNoToken):
		return StageToken
	case errors.Is(t.Err, errNoMechanism):
		return smtp.StageAuth
	case errors.As(t.Err, &lookup):
		return StageLookup
	}
	switch e := t.Reply.Enhanced; [2]int{e.Subject, e.Detail} {
	case [2]int{7, 4}, [2]int{7, 5}:
		return smtp.StageTLS
	case [2]int{4, 3}, [2]int{1, 2}, [2]int{1, 10}:
		return StageLookup
	case [2]int{4, 6}:
		return StageLoop
	}
	return smtp.StageConnect
}

// CodeClosed is the greeting of a host that takes no mail (RFC 7504 section 3).
const CodeClosed = 521

// isClosed reports such a greeting of a mail host. At an upstream, its admin has to correct
// it.
func isClosed(to Target, err error) bool {
	var stage *smtp.StageError
	return to.Upstream == nil && errors.As(err, &stage) && stage.Stage == smtp.StageGreeting && stage.Reply.Code == CodeClosed
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

// replyOf is the server's refusal in err or, if there is none, one of ours.
func replyOf(err error) (r smtp.Reply, ours bool) {
	var stage *smtp.StageError
	if errors.As(err, &stage) && (stage.Reply.IsTemporary() || stage.Reply.IsPermanent()) {
		return stage.Reply, false
	}
	return Lost(err), true
}

// Lost is the made-up reply about a conversation that broke off with an *smtp.StageError (RFC 5321
// section 4.2.5 has a client treat a lost connection as a 451).
func Lost(err error) smtp.Reply {
	var stage *smtp.StageError
	if !errors.As(err, &stage) {
		return smtp.Temporary(451, 3, 0, "the attempt ended without a reply")
	}
	where := inWords[stage.Stage]
	switch {
	case IsTimeout(stage.Err):
		return smtp.Temporary(451, 4, 2, "no answer in time "+where)
	case errors.Is(stage.Err, smtp.ErrOutOfStep), errors.Is(stage.Err, smtp.ErrMalformedReply):
		// The server decided nothing, but an admin wants to read this.
		return smtp.Temporary(451, 5, 0, "conversation lost "+where+", "+stage.Err.Error())
	}
	return smtp.Temporary(451, 4, 2, "conversation lost "+where)
}

// IsTimeout reports an error of a peer that was silent for too long.
func IsTimeout(err error) bool {
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout()
}

// TableStage is a stage of the conversation as the tables of replies have it.
func TableStage(s smtp.Stage) upstream.Stage {
	switch s {
	case smtp.StageTLS:
		return upstream.StageTLS
	case smtp.StageAuth, StageToken:
		return upstream.StageAuth
	case smtp.StageMail:
		return upstream.StageMail
	case smtp.StageRcpt:
		return upstream.StageRcpt
	case smtp.StageData, smtp.StageBody:
		return upstream.StageData
	case smtp.StageDot:
		return upstream.StageDot
	}
	return upstream.StageConnect
}
