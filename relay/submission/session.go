package submission

import (
	"crypto/tls"
	"errors"
	"io"
	"runtime/debug"
	"sync/atomic"
	"time"

	"postern/auth"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// session is one client's connection, from the greeting to the close. Its methods
// run in one goroutine.
//
// Four facts decide what it may do next: secured (TLS), greeted (EHLO or HELO), identity
// (AUTH) and tx (MAIL). Others send it only revocation (wire) and a new identity.
type session struct {
	server   *Server
	listener *listener
	peer     peer
	wire     *wire
	reader   *smtp.Reader
	started  time.Time

	limits     *Limits // of the moment when the session began, as the next two
	hideClient bool
	normalize  bool // Listener.NormalizeBareLF
	brackets   bool // Listener.TolerateBrackets

	counted tally
	proxied bool // a PROXY header comes first
	unnamed bool // a load balancer's without a client: no AUTH, and it is not counted

	secured  string // TLS facts, "" in clear
	greeted  bool   // by EHLO or HELO
	hello    string // the client's name for itself, "" if it gave none
	esmtp    bool   // it was EHLO
	identity *auth.Identity
	tx       *transaction            // nil outside a mail transaction
	holders  holders                 // in whose name it holds memory; nil before AUTH
	sharing  atomic.Pointer[holders] // the same, for the stress loop
	slow     slowness                // the stress loop's own

	renewed atomic.Pointer[auth.Identity] // for the next transaction; nil: nothing new
	group   *group                        // of logins, which guards it; nil before AUTH
	release func()                        // of Config.Sessions, nil before AUTH

	commands int // since the greeting or the last accepted message
	bad      int
	putOff   bool // the last MAIL was refused for now
	failures int  // of AUTH
	waits    int  // AUTH that was put off
	refused  int  // recipients, for what they were
	messages int  // accepted
	first    bool
	ended    string // why the session ends, "" while it goes on
}

// transaction is one message in the making: MAIL, and RCPTs.
type transaction struct {
	mail    smtp.MailCommand
	rule    string // of the policy that allowed the sender
	rcpts   []queue.Recipient
	known   map[smtp.Address]struct{} // rcpts by domain key, for finding one named twice
	refused int
	putOff  bool  // a recipient was refused for now
	takes   int64 // octets of memory, about
	held    int64 // of them, those that are charged
}

func newSession(s *Server, a arrival) *session {
	now := time.Now()
	set := s.settings.Load()
	own := a.listener.settings.Load()
	w := &wire{raw: a.conn, conn: a.conn, limits: &set.limits, end: now.Add(set.limits.Session)}
	return &session{
		server: s, listener: a.listener, peer: a.peer, counted: a.counted, proxied: a.proxied, unnamed: a.proxied,
		wire: w, reader: smtp.NewReader(w), started: now, first: true,
		limits: &set.limits, hideClient: set.hideClient, normalize: own.normalizeBareLF, brackets: own.tolerateBrackets,
	}
}

// run is the session from the first octet to the last.
func (s *session) run() {
	defer s.close()
	if s.proxied && !s.introduce() {
		return
	}
	if s.listener.TLS == Implicit && !s.handshake() {
		return
	}
	if !s.unnamed {
		s.server.mail.SessionOpen(s.event())
	}
	if s.server.peers.knows(s.peer.network) {
		s.wire.known.Store(true)
	}
	// The greeting has no enhanced code (RFC 2034 section 4).
	s.wire.reply(smtp.Reply{Code: 220, Text: s.server.cfg.Hostname + " ESMTP Postern"})
	for s.ended == "" {
		s.next()
	}
}

// next reads one command and answers it.
func (s *session) next() {
	if s.tx == nil && s.server.draining.Err() != nil {
		s.leave("shutdown", replyShutdown)
		return
	}
	if s.tx == nil && s.wire.isRevoked() { // there may be commands already, to be read without a wait
		s.leave("revoked", replyRevoked)
		return
	}
	line, err := s.line()
	if _, whole := asRefusal(err); err != nil && !whole {
		s.lineFailed(err)
		return
	}
	if s.wire.isRevoked() {
		s.leave("revoked", replyRevoked)
		return
	}
	s.renew()
	if over := s.exhausted(); over != "" {
		s.leave(over, smtp.Temporary(421, 7, 0, "Too many "+over+", closing connection"))
		return
	}
	s.commands++
	if err != nil {
		s.misbehaved(err)
		return
	}
	cmd, err := smtp.ParseCommand(line)
	if err != nil {
		s.misbehaved(err)
		return
	}
	if len(line)+2 > smtp.MaxCommandLine && cmd.Verb != "AUTH" {
		s.answer(cmd.Verb, smtp.Permanent(500, 5, 2, "Line too long"))
		return
	}
	if s.first && isHTTP(cmd.Verb) {
		// A browser that was led here (cross-protocol attack) must not go on to a
		// body that holds SMTP commands.
		s.violation("HTTP request")
		s.leave("http", smtp.Temporary(421, 7, 0, "This is an SMTP server, closing connection"))
		return
	}
	s.first = false
	s.answer(cmd.Verb, s.dispatch(cmd))
}

// renew takes over the result of a recheck, between transactions: each is judged by the same
// patterns and limits from MAIL to the dot.
func (s *session) renew() {
	if s.tx != nil {
		return
	}
	if id := s.renewed.Swap(nil); id != nil {
		renewed := *id                             // others of the same access have it too
		renewed.NewNetwork = s.identity.NewNetwork // only a login learns that
		s.identity = &renewed
	}
}

// dispatch runs a command and returns its reply; the zero Reply means that it was sent
// already.
func (s *session) dispatch(cmd smtp.Command) smtp.Reply {
	if refusal := s.unauthenticated(cmd.Verb); !refusal.IsZero() {
		return refusal
	}
	switch cmd.Verb {
	case "EHLO":
		return s.ehlo(cmd.Args)
	case "HELO":
		return s.helo(cmd.Args)
	case "STARTTLS":
		return s.startTLS(cmd.Args)
	case "AUTH":
		return s.auth(cmd.Args)
	case "MAIL":
		return s.mailFrom(cmd.Args)
	case "RCPT":
		return s.rcptTo(cmd.Args)
	case "DATA":
		return s.data(cmd.Args)
	case "RSET":
		return s.rset(cmd.Args)
	case "NOOP":
		return smtp.OK(250, 0, 0, "Ok")
	case "VRFY":
		return vrfy(cmd.Args)
	case "HELP":
		return smtp.OK(214, 0, 0, "Message submission (RFC 6409): EHLO, STARTTLS, AUTH, MAIL, RCPT, DATA")
	case "QUIT":
		return s.quit(cmd.Args)
	case "EXPN", "TURN", "ETRN", "SEND", "SOML", "SAML", "BDAT":
		return smtp.Permanent(502, 5, 1, "Command not implemented")
	}
	return smtp.Permanent(500, 5, 1, "Command not recognized")
}

// unauthenticated refuses, to a client that has not logged in, each command that RFC 4954
// section 6 does not allow it.
func (s *session) unauthenticated(verb string) smtp.Reply {
	switch verb {
	case "MAIL", "RCPT", "DATA", "VRFY", "EXPN", "TURN", "ETRN", "SEND", "SOML", "SAML", "BDAT":
	default:
		return smtp.Reply{}
	}
	switch {
	case s.identity != nil:
		return smtp.Reply{}
	case s.secured == "":
		return smtp.Permanent(530, 7, 0, "Must issue a STARTTLS command first")
	}
	return smtp.Permanent(530, 7, 0, "Authentication required")
}

// answer replies to verb, counts bad commands and flushes replies that may not wait for a read
// (RFC 2920 section 3.2: only those to MAIL, RCPT, RSET and the final dot may).
func (s *session) answer(verb string, r smtp.Reply) {
	if r.Code == replyRevoked.Code && s.wire.isRevoked() { // the message in hand
		s.leave("revoked", r)
		return
	}
	if !r.IsZero() {
		s.wire.reply(r)
		if verb != "RCPT" && isBadCommand(r.Code) {
			s.bad++
		}
	}
	switch verb {
	case "MAIL", "RCPT", "RSET", "DATA":
		return
	}
	if err := s.wire.flush(); err != nil {
		s.end("write failed")
	}
}

// isBadCommand distinguishes the client's own mistakes from refusals of its mail.
func isBadCommand(code int) bool {
	switch code {
	case 500, 501, 502, 503, 504, 530, 538, 555:
		return true
	}
	return false
}

// misbehaved answers a line that is not a command.
func (s *session) misbehaved(err error) {
	refusal, ok := asRefusal(err)
	if !ok {
		refusal = &smtp.Error{Reply: smtp.Permanent(500, 5, 2, "Syntax error")}
	}
	s.first = false
	s.answer("", refusal.Reply)
}

// exhausted returns which limit the session has used up.
func (s *session) exhausted() string {
	l := s.limits
	switch {
	case s.failures >= l.FailedAuths:
		return "failed authentications"
	case s.waits >= l.BadCommands:
		return "attempts to authenticate"
	case s.bad >= l.BadCommands:
		return "bad commands"
	case s.refused >= l.RefusedRecipients:
		return "refused recipients"
	case s.commands >= l.Commands:
		return "commands"
	}
	return ""
}

// line waits for a command line. AUTH may be long, and only before AUTH is done.
func (s *session) line() ([]byte, error) {
	limit := smtp.MaxCommandLine
	if s.identity == nil {
		limit = smtp.MaxAuthLine
	}
	s.await(s.tx == nil)
	return s.reader.Line(limit)
}

// await sets how long the next line may take, and whether a shutdown ends the wait.
func (s *session) await(idle bool) {
	until := time.Now().Add(s.limits.Idle)
	if login := s.started.Add(s.limits.Login); s.identity == nil && login.Before(until) {
		until = login
	}
	s.wire.until, s.wire.idle = until, idle
}

// lineFailed ends the session: no line could be read to its end.
func (s *session) lineFailed(err error) {
	switch {
	case s.wire.dead != nil:
		s.end("write failed")
	case errors.Is(err, errShutdown):
		s.leave("shutdown", replyShutdown)
	case errors.Is(err, errRevoked):
		s.leave("revoked", replyRevoked)
	case errors.Is(err, errExpelled):
		s.server.counts.expelled.Add(1)
		s.leave("gave way", replyBusy)
	case isTimeout(err):
		s.leave("timeout", replyTimeout)
	case errors.Is(err, smtp.ErrLineEndless):
		s.leave("endless line", smtp.Temporary(421, 7, 0, "Line too long, closing connection"))
	case errors.Is(err, io.EOF):
		s.end("disconnect")
	default:
		s.end("connection lost")
	}
}

// leave sends r and ends the session.
func (s *session) leave(why string, r smtp.Reply) {
	s.end(why)
	if why == "revoked" {
		s.server.counts.revoked.Add(1)
	}
	s.wire.reply(r)
	if s.wire.flush() == nil {
		s.wire.linger()
	}
}

func (s *session) end(why string) {
	if s.ended == "" {
		s.ended = why
	}
}

// violation counts and logs something that no honest client does.
func (s *session) violation(what string) {
	s.server.counts.violations.Add(1)
	if !s.server.mail.Allow("protocol violation: "+what, s.peer.addr) {
		return
	}
	s.server.log.Warn("protocol violation", "what", what, "client", s.peer.addr.String(), "listener", s.listener.Name)
}

// close ends the connection; a panic ends with it and stays in this session.
func (s *session) close() {
	if p := recover(); p != nil {
		s.server.counts.panics.Add(1)
		if s.server.mail.Allow("session panicked", s.peer.addr) {
			s.server.log.Error("session panicked", "client", s.peer.addr.String(), "panic", p, "stack", string(debug.Stack()))
		}
		s.end("panic")
		s.wire.out = replyFault.Append(s.wire.out[:0])
		_ = s.wire.flush() // the connection is closed in any case
	}
	if _, ok := s.wire.conn.(*tls.Conn); ok && s.wire.dead == nil {
		_ = s.wire.conn.Close() // says close_notify and closes raw
	}
	_ = s.wire.raw.Close()
	s.endTransaction()
	if s.unnamed {
		return
	}
	e := s.event()
	e.Elapsed, e.Reason, e.Messages = time.Since(s.started), s.ended, s.messages
	s.server.mail.SessionClosed(e)
}

// event is the session for the log.
func (s *session) event() maillog.Session {
	return maillog.Session{
		Client: s.peer.addr, Listener: s.listener.Name,
		Hello: s.hello, TLS: s.secured, User: s.user(),
	}
}

func (s *session) user() string {
	if s.identity == nil {
		return ""
	}
	return s.identity.Name
}

// isHTTP reports the verb of an HTTP request line.
func isHTTP(verb string) bool {
	switch verb {
	case "GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "CONNECT", "TRACE", "PATCH":
		return true
	}
	return false
}
