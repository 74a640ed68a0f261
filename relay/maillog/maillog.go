package maillog

import (
	"context"
	"iter"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"postern/internal/share"
	"postern/relay/smtp"
)

// Logger writes mail events. Its methods may be called from several goroutines.
type Logger struct {
	log     *slog.Logger
	told    Observer
	repeats *repeats
}

// New returns a Logger that writes to log, or nowhere when log is nil.
func New(log *slog.Logger) *Logger {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Logger{log: log, repeats: &repeats{log: log}}
}

// Accept is a message that was committed to the queue. Event "accepted".
type Accept struct {
	ID         string // queue id
	User       string // canonical account name
	Sender     smtp.Address
	Recipients int
	Size       int64 // octets stored
	MessageID  string
	Client     netip.AddrPort
	Hello      string
	TLS        string // "" in clear
	Rule       string // the policy rule that allowed the sender
	Removed    string // what stood before the header and was removed: "bom", "mbox" or both
}

// Accepted logs that a message is in the queue.
func (l *Logger) Accepted(a Accept) {
	tell(l.told.Accepted, a)
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("id", a.ID)
	e.text("user", a.User)
	e.path("sender", a.Sender)
	e.add(slog.Int("recipients", a.Recipients), slog.Int64("size", a.Size))
	e.text("message_id", a.MessageID)
	e.addr("client", a.Client)
	e.text("hello", a.Hello)
	e.text("tls", a.TLS)
	e.text("rule", a.Rule)
	e.text("removed", a.Removed)
	e.end("accepted")
}

// DuplicateEvent is a message that, for some recipients or for all, had been accepted before and was
// not taken again. Event "duplicate".
type DuplicateEvent struct {
	ID         string // of the copy
	First      string // queue id of the oldest message that it is a copy of
	User       string // canonical account name
	Sender     smtp.Address
	Recipients int // that had been accepted before
	MessageID  string
	Client     netip.AddrPort
}

// Duplicate logs that a copy of a message was not taken again.
func (l *Logger) Duplicate(d DuplicateEvent) {
	tell(l.told.Duplicate, d)
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("id", d.ID)
	e.text("first", d.First)
	e.text("user", d.User)
	e.path("sender", d.Sender)
	e.add(slog.Int("recipients", d.Recipients))
	e.text("message_id", d.MessageID)
	e.addr("client", d.Client)
	e.end("duplicate")
}

// HeldEvent is a message that was accepted and waits for an admin because of a hold.
// Event "held".
type HeldEvent struct {
	ID         string // queue id
	User       string // canonical account name
	Sender     smtp.Address
	Recipients int
}

// Held logs that an accepted message is held.
func (l *Logger) Held(h HeldEvent) {
	tell(l.told.Held, h)
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("id", h.ID)
	e.text("user", h.User)
	e.path("sender", h.Sender)
	e.add(slog.Int("recipients", h.Recipients))
	e.end("held")
}

// LimitEvent is a limit that is nearly used up. Event "limit_near".
type LimitEvent struct {
	User       string // name, or id where no name is known; "" for a limit of one of the next two
	Credential string // its number
	Domain     string // whose users the limit counts together
	Limit      string // "messages 100/m"
	Used       int64  // in the limit's window, in what it counts
}

// LimitNear logs that four fifths of a limit are used.
func (l *Logger) LimitNear(n LimitEvent) {
	tell(l.told.LimitNear, n)
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("user", n.User)
	e.text("credential", n.Credential)
	e.text("domain", n.Domain)
	e.text("limit", n.Limit)
	e.add(slog.Int64("used", n.Used))
	e.end("limit_near")
}

// HoldEvent is a hold on the mail of a user that was made or ended.
// Events "hold" and "released".
type HoldEvent struct {
	User       string // canonical account name
	Credential string // its number, when the hold is of what came by it alone
	Reason     string // why it was made

	ByAnomaly bool // for observers, not logged
}

// Hold logs that the mail of a user is held from now on.
func (l *Logger) Hold(h HoldEvent) {
	tell(l.told.Hold, h)
	l.hold("hold", h)
}

// Released logs that a hold was ended.
func (l *Logger) Released(h HoldEvent) {
	tell(l.told.Released, h)
	l.hold("released", h)
}

func (l *Logger) hold(name string, h HoldEvent) {
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("user", h.User)
	e.text("credential", h.Credential)
	e.text("reason", h.Reason)
	e.end(name)
}

// Refusal is a command or a message that was answered 4yz or 5yz. Event "refused".
type Refusal struct {
	ID        string // queue id when one was minted already
	User      string // "" before AUTH
	Sender    smtp.Address
	Recipient smtp.Address
	Client    netip.AddrPort
	Stage     smtp.Stage
	Reply     smtp.Reply
	Rule      string // the policy rule that refused
	Err       error  // the cause when the trouble is ours: the line becomes a warning
}

// Refused logs a refusal. Of many a minute for one user it logs the first.
func (l *Logger) Refused(r Refusal) {
	tell(l.told.Refused, r)
	if !l.repeats.allow(repeat{kind: "refused " + string(r.Stage), user: r.User}, users) {
		return
	}
	level := slog.LevelInfo
	if r.Err != nil {
		level = slog.LevelWarn
	}
	e := l.begin(level)
	if e == nil {
		return
	}
	e.text("id", r.ID)
	e.text("user", r.User)
	e.mailbox("sender", r.Sender)
	e.mailbox("recipient", r.Recipient)
	e.addr("client", r.Client)
	e.text("stage", string(r.Stage))
	e.reply(r.Reply)
	e.text("rule", r.Rule)
	e.err(r.Err)
	e.end("refused")
}

// AttemptEnd is the end of one delivery attempt for one recipient. The event has
// the name of the result: "delivered", "deferred" or "failed", which a suppressed recipient is too.
type AttemptEnd struct {
	ID                string
	Recipient         smtp.Address
	Result            string // delivered, deferred or failed
	Reply             smtp.Reply
	RemoteMTA         string
	RemoteIP          netip.AddrPort
	TLS               string
	Upstream          string // the upstream's name, or "mx"
	SentAs            string // the mailbox that the upstream has put in the sender's place, "" for none
	Scope             string // what was at fault, "" for the recipient or the message
	Left              string // the attempt's other ways and why they were left, "" for none
	Attempt           int    // counted from 1
	Elapsed           time.Duration
	RetryIn           time.Duration // deferred: the wait before the next attempt
	PossibleDuplicate bool
	Err               error // trouble without a reply

	// For observers, not logged.
	Age            time.Duration // since the message was accepted
	NotAnAttempt   bool          // no server was asked: there is no route
	OutcomeUnknown bool          // this attempt may have delivered
}

// Attempts logs how attempts for the recipients of one message ended. A handler with a method
// Together(func()) may write their lines in one piece.
func (l *Logger) Attempts(ends iter.Seq[AttemptEnd]) {
	log := func() {
		var last AttemptEnd
		var e *event
		for a := range ends {
			tell(l.told.Attempt, a)
			if last.Err == nil && e != nil && a.Err == nil && last.butFor(a.Recipient) == a {
				e.attrs[recipientAttr] = pathAttr("recipient", a.Recipient)
			} else if e = l.attempt(a); e == nil {
				continue
			}
			last = a
			e.end(resultEvent(a.Result))
		}
	}
	if h, ok := l.log.Handler().(interface{ Together(func()) }); ok {
		h.Together(log)
		return
	}
	log()
}

// butFor is a with another recipient.
func (a AttemptEnd) butFor(rcpt smtp.Address) AttemptEnd {
	a.Recipient = rcpt
	return a
}

// recipientAttr is the place of the recipient in an attempt's line, behind the id.
const recipientAttr = 1

// attempt is the line of an attempt, nil when nobody listens.
func (l *Logger) attempt(a AttemptEnd) *event {
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return nil
	}
	e.add(slog.String("id", Clean(a.ID)))
	e.path("recipient", a.Recipient)
	e.reply(a.Reply)
	e.text("remote_mta", a.RemoteMTA)
	e.addr("remote_ip", a.RemoteIP)
	e.text("tls", a.TLS)
	e.text("upstream", a.Upstream)
	e.text("sent_as", a.SentAs)
	e.text("scope", a.Scope)
	e.text("left", a.Left)
	e.add(slog.Int("attempt", a.Attempt), slog.Int64("elapsed_ms", a.Elapsed.Milliseconds()))
	if a.RetryIn > 0 {
		e.add(slog.Int64("retry_in_s", int64(a.RetryIn/time.Second)))
	}
	if a.PossibleDuplicate {
		e.add(slog.Bool("possible_duplicate", true))
	}
	e.err(a.Err)
	return e
}

// resultEvent keeps event names a closed set.
func resultEvent(result string) string {
	switch result {
	case "delivered", "failed":
		return result
	case "suppressed":
		return "failed"
	}
	return "deferred" // an unknown result is a deferral everywhere in the relay
}

// NoticeEvent is a notice to a sender. Event "bounced" for the kind "failure",
// "notice" for the others.
type NoticeEvent struct {
	ID         string // queue id of the notice; "" when none is sent
	About      string // queue id of the message that it is about
	Kind       string // failure, doubt, delay or success
	To         smtp.Address
	Recipients int    // how many recipients it reports
	Suppressed string // why no notice is sent, "" when one is
}

// Notice logs a notice, or that a due one is not sent.
func (l *Logger) Notice(n NoticeEvent) {
	tell(l.told.Notice, n)
	e := l.begin(slog.LevelInfo)
	if e == nil {
		return
	}
	e.text("id", n.ID)
	e.text("about", n.About)
	e.text("kind", n.Kind)
	e.path("recipient", n.To)
	e.add(slog.Int("recipients", n.Recipients))
	e.text("suppressed", n.Suppressed)
	name := "notice"
	if n.Kind == "failure" && n.Suppressed == "" {
		name = "bounced"
	}
	e.end(name)
}

// LostNoticeEvent is a notice that ended undelivered: the sender of some mail was not told
// what became of it. Event "notice_lost".
type LostNoticeEvent struct {
	ID     string // queue id of the notice
	About  string // queue id of the message that it was about
	Kind   string // failure, doubt, delay or success
	To     smtp.Address
	Reply  smtp.Reply // the last that the notice got; zero when it got none
	Reason string     // "failed", "expired", "cancelled"
}

// NoticeLost logs that a notice was lost.
func (l *Logger) NoticeLost(n LostNoticeEvent) {
	tell(l.told.NoticeLost, n)
	e := l.begin(slog.LevelWarn)
	if e == nil {
		return
	}
	e.text("id", n.ID)
	e.text("about", n.About)
	e.text("kind", n.Kind)
	e.path("recipient", n.To)
	e.reply(n.Reply)
	e.text("reason", n.Reason)
	e.end("notice_lost")
}

// AuthEvent is the end of an AUTH exchange. Event "auth".
type AuthEvent struct {
	User      string // canonical when OK, otherwise as it was typed; "" when unknown
	Client    netip.AddrPort
	Listener  string
	Mechanism string
	TLS       string
	OK        bool
	Reason    string // "credentials", "busy", "unavailable", "malformed", "cancelled", "sessions"
	Rule      string // the policy rule that refused, for "sessions"
	Err       error  // the cause when the trouble is ours: the line becomes a warning
}

// Auth logs the end of an AUTH exchange. Of many a minute for one user or network it logs
// the first.
func (l *Logger) Auth(a AuthEvent) {
	tell(l.told.Auth, a)
	if !l.repeats.allow(a.repeat()) {
		return
	}
	level := slog.LevelInfo
	if a.Err != nil {
		level = slog.LevelWarn
	}
	e := l.begin(level)
	if e == nil {
		return
	}
	e.text("user", a.User)
	e.addr("client", a.Client)
	e.text("listener", a.Listener)
	e.text("mechanism", a.Mechanism)
	e.text("tls", a.TLS)
	e.add(slog.Bool("ok", a.OK))
	e.text("reason", a.Reason)
	e.text("rule", a.Rule)
	e.err(a.Err)
	e.end("auth")
}

// repeat is what an exchange is counted with. The name that was tried does not matter: a
// stranger can try any.
func (a *AuthEvent) repeat() (repeat, class) {
	if a.OK || a.Reason == "sessions" {
		return repeat{kind: strings.TrimSpace("auth " + a.Reason), user: a.User}, users
	}
	of := strangers
	if a.Reason == "credentials" {
		of = guesses
	}
	return repeat{kind: "auth " + a.Reason, network: share.Network(a.Client.Addr())}, of
}

// Session is a client's connection. Events "session_open" and "session_closed", at
// debug level.
type Session struct {
	Client   netip.AddrPort
	Listener string
	Hello    string
	TLS      string
	User     string
	Messages int
	Elapsed  time.Duration
	Reason   string // why it ended: "quit", "timeout", "shutdown", "revoked", …
}

// SessionOpen logs that a client connected.
func (l *Logger) SessionOpen(s Session) { l.session("session_open", s) }

// SessionClosed logs that a connection ended.
func (l *Logger) SessionClosed(s Session) {
	tell(l.told.SessionClosed, s)
	l.session("session_closed", s)
}

func (l *Logger) session(name string, s Session) {
	e := l.begin(slog.LevelDebug)
	if e == nil {
		return
	}
	e.addr("client", s.Client)
	e.text("listener", s.Listener)
	e.text("hello", s.Hello)
	e.text("tls", s.TLS)
	e.text("user", s.User)
	if name == "session_closed" {
		e.add(slog.Int("messages", s.Messages), slog.Int64("elapsed_ms", s.Elapsed.Milliseconds()))
	}
	e.text("reason", s.Reason)
	e.end(name)
}

func (l *Logger) begin(level slog.Level) *event { return begin(l.log, level) }

// begin returns nil when nobody listens at that level.
func begin(log *slog.Logger, level slog.Level) *event {
	if !log.Enabled(context.Background(), level) {
		return nil
	}
	return &event{log: log, level: level}
}
