package smtp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

// Timeouts are the patience of a client for each step (RFC 5321 section 4.5.3.2).
type Timeouts struct {
	Greeting  time.Duration // 5 min
	Command   time.Duration // EHLO, MAIL, RCPT, RSET, AUTH: 5 min
	DataInit  time.Duration // 2 min
	DataBlock time.Duration // each block of the body: 3 min
	DataDone  time.Duration // the reply to the final dot: 10 min
	TLS       time.Duration // the handshake: 1 min
	Quit      time.Duration // the reply to QUIT: 5 s
}

func (t Timeouts) withDefaults() Timeouts {
	or := func(d *time.Duration, otherwise time.Duration) {
		if *d <= 0 {
			*d = otherwise
		}
	}
	or(&t.Greeting, 5*time.Minute)
	or(&t.Command, 5*time.Minute)
	or(&t.DataInit, 2*time.Minute)
	or(&t.DataBlock, 3*time.Minute)
	or(&t.DataDone, 10*time.Minute)
	or(&t.TLS, time.Minute)
	or(&t.Quit, 5*time.Second)
	return t
}

// ClientConfig configures a Client; zero durations and bounds take the defaults.
type ClientConfig struct {
	Hello         string // our name for EHLO: a domain or an address literal
	Timeouts      Timeouts
	MaxReplyLines int
	MaxReplyBytes int
	// Progress, unless nil, grows with each complete reply that is heard and with each
	// block of a message that the server takes: one that stands still is a silent server.
	Progress *atomic.Uint64
	// Heard, unless nil, is given each complete reply, of a challenge only its code.
	Heard func(Stage, Reply)
}

// Client speaks to one server over one connection. It is not safe for concurrent
// use.
//
// Every step ends at the earlier of its timeout and the context's deadline; a
// context that is cancelled interrupts the step. After a timeout, a malformed
// reply, a 421 or words that the server was not asked for, the connection is
// closed: a late answer can never be taken for that to another command.
type Client struct {
	cfg  ClientConfig
	base net.Conn // as given to NewClient: deadlines are set here
	raw  net.Conn // the connection below TLS
	conn net.Conn // base, or TLS over it
	src  source
	r    *Reader
	peek peeker

	extensions    map[string]string // parameters by keyword
	limits        limits
	mails         int                 // MAIL commands said
	domains       map[string]struct{} // of recipients that were named, where they are limited
	tls           *tls.ConnectionState
	line          []byte // scratch for command lines
	ready         bool   // EHLO or HELO was answered
	authenticated bool
	secrets       []string // that were sent, see Masked
	open          bool     // MAIL was accepted and no final dot answered: RSET before the next
	interrupted   bool     // a context ended while its watch was on
	closed        bool
}

// Stage says where in the conversation something happened.
type Stage string

const (
	StageConnect  Stage = "connect"
	StageGreeting Stage = "greeting"
	StageHello    Stage = "ehlo"
	StageTLS      Stage = "starttls"
	StageAuth     Stage = "auth"
	StageMail     Stage = "mail"
	StageRcpt     Stage = "rcpt"
	StageData     Stage = "data"  // between DATA and its 354
	StageBody     Stage = "body"  // while the message is written
	StageDot      Stage = "dot"   // the final dot was (or may have been) sent
	StageReset    Stage = "reset" // of Rehearse
	StageQuit     Stage = "quit"
)

// StageError is a conversation that ended before its time. Reply is what the
// server said if it said a complete reply; otherwise Err is the trouble (I/O,
// timeout, a malformed reply).
type StageError struct {
	Stage Stage
	Reply Reply
	Err   error
}

func (e *StageError) Error() string {
	if !e.Reply.IsZero() {
		return string(e.Stage) + ": " + e.Reply.String()
	}
	return string(e.Stage) + ": " + e.Err.Error()
}

func (e *StageError) Unwrap() error { return e.Err }

// ErrOutOfStep is the cause of a StageError for a server whose replies do not fit the
// commands: 250 to DATA, 354 to MAIL, a reply before the command. Its
// replies cannot be matched to commands, so none of them is believed.
var ErrOutOfStep = errors.New("server is out of step")

// OutOfStepError is ErrOutOfStep with what was said. Many servers say so what is wrong
// with a message that they do not want to read to its end, and close.
type OutOfStepError struct{ Said Reply }

func (e *OutOfStepError) Error() string {
	return ErrOutOfStep.Error() + ": it said " + Excerpt(e.Said.String())
}

func (e *OutOfStepError) Unwrap() error { return ErrOutOfStep }

// SASL is one client side exchange; go-sasl's Client fits.
type SASL interface {
	Start() (mech string, initial []byte, err error)
	Next(challenge []byte) (response []byte, err error)
}

// Transaction is one message for some recipients of one destination.
type Transaction struct {
	// Mail has the envelope and the needs of the message: Body8BitMIME and UTF8 say
	// that a server without 8BITMIME or SMTPUTF8 cannot have it. The needs of addresses are
	// seen in them.
	Mail     MailCommand
	Rcpts    []RcptCommand
	Body     io.Reader // the message, CRLF lines, not dot-stuffed
	Size     int64     // octets of Body, for SIZE=
	Proved   bool      // under TLS the server has proved to be the one that the mail is for: REQUIRETLS needs it
	Unsure   bool      // mail with REQUIRETLS that cannot go there is to wait
	EightBit bool      // Body has octets beyond ASCII; BODY=8BITMIME is said where it is offered
	// BeforeDot is called when all but the final dot is written (or buffered) and
	// at least one recipient was accepted. An error keeps the dot from being sent
	// and closes the connection.
	BeforeDot func() error
}

// Result is what became of a Transaction.
type Result struct {
	// Replies has one complete reply for each recipient, in order: the refusal at
	// MAIL, RCPT or DATA, or the reply to the final dot. A zero Reply means that
	// Err kept it from being known.
	Replies []Reply
	// Stages says for each of Replies which command it answered: StageHello for a
	// reply made up because of EHLO's answer (see also Withheld), StageMail, StageRcpt,
	// StageData, StageDot; for a 421 or another last word, where it was said.
	Stages []Stage
	// Err is trouble with the connection: a *StageError. The connection is closed.
	// When the server said 421 at any point, that is its Reply, and it is also
	// that of every recipient which had none yet.
	Err error
	// DotSent says that the final dot was, or may have been, sent. With Err set the
	// outcome for the recipients with a zero Reply is unknown.
	DotSent bool
	// DSN says that the server offers DSN: NOTIFY and ORCPT, where set, were
	// passed on.
	DSN bool
}

// NewClient wraps an open connection; nothing is sent or read yet.
func NewClient(conn net.Conn, cfg ClientConfig) *Client {
	cfg.Timeouts = cfg.Timeouts.withDefaults()
	c := &Client{cfg: cfg, base: conn, raw: conn}
	if over, ok := conn.(interface{ NetConn() net.Conn }); ok {
		c.raw = over.NetConn()
	}
	if fd, ok := c.raw.(syscall.Conn); ok {
		c.peek = newPeeker(fd)
	}
	c.attach(conn)
	return c
}

// attach makes conn what is spoken over. Nothing learnt before is kept.
func (c *Client) attach(conn net.Conn) {
	c.conn = conn
	c.src = source{conn: conn}
	c.r = NewReader(&c.src)
	c.extensions, c.ready, c.authenticated = nil, false, false
}

// Greet reads the greeting and sends EHLO, falling back to HELO on a 5yz. The
// error is a *StageError.
func (c *Client) Greet(ctx context.Context) error {
	defer c.watch(ctx)()
	reply, err := c.hear(ctx, StageGreeting, c.cfg.Timeouts.Greeting)
	if err != nil {
		return err
	}
	if !reply.IsPositive() {
		return c.refused(ctx, StageGreeting, reply)
	}
	return c.hello(ctx)
}

// hello sends EHLO or HELO and learns the extensions.
func (c *Client) hello(ctx context.Context) error {
	name := c.cfg.Hello
	if name == "" || strings.ContainsFunc(name, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return c.trouble(ctx, StageHello, fmt.Errorf("%q is no name for EHLO", name))
	}
	reply, err := c.command(ctx, StageHello, "EHLO "+name)
	if err != nil {
		return err
	}
	extended := reply.IsPositive()
	if reply.IsPermanent() { // RFC 5321 section 3.2
		if reply, err = c.command(ctx, StageHello, "HELO "+name); err != nil {
			return err
		}
	}
	if !reply.IsPositive() {
		return c.refused(ctx, StageHello, reply)
	}
	c.extensions = nil
	if extended {
		c.extensions = parseExtensions(reply.Text)
	}
	c.limits, c.domains = parseLimits(c.extensions["LIMITS"]), map[string]struct{}{}
	c.ready = true
	return nil
}

// parseExtensions reads the lines of a reply to EHLO behind the first, each a
// keyword and its parameters (RFC 5321 section 4.1.1.1). "AUTH=LOGIN" of old
// servers counts as AUTH LOGIN.
func parseExtensions(text string) map[string]string {
	lines := strings.Split(text, "\n")[1:]
	out := make(map[string]string, len(lines))
	for _, line := range lines {
		keyword, params := line, ""
		if i := strings.IndexAny(line, " ="); i >= 0 {
			keyword, params = line[:i], strings.TrimSpace(line[i+1:])
		}
		keyword = strings.ToUpper(keyword)
		if before, twice := out[keyword]; twice {
			params = strings.TrimSpace(before + " " + params)
		}
		if keyword != "" {
			out[keyword] = params
		}
	}
	return out
}

// Extension returns the parameters of an EHLO keyword and whether it is offered.
// A keyword that was offered twice has the parameters of both.
func (c *Client) Extension(keyword string) (params string, ok bool) {
	params, ok = c.extensions[strings.ToUpper(keyword)]
	return params, ok
}

// moved says that the server did something.
func (c *Client) moved() {
	if c.cfg.Progress != nil {
		c.cfg.Progress.Add(1)
	}
}

func (c *Client) offers(keyword string) bool {
	_, ok := c.extensions[keyword]
	return ok
}

// AuthMechanisms returns the SASL mechanisms that the server offers, in upper case
// and in its order.
func (c *Client) AuthMechanisms() []string {
	var out []string
	for _, mech := range strings.Fields(strings.ToUpper(c.extensions["AUTH"])) {
		if !slices.Contains(out, mech) {
			out = append(out, mech)
		}
	}
	return out
}

// Usable reports that another transaction may be sent on this connection: it is
// open, the server was greeted, and it has said nothing since its last reply. It
// looks at the connection without waiting, so that one that the server closed while
// it was idle is found out.
func (c *Client) Usable() bool {
	return !c.closed && c.ready && !c.interrupted && c.silent(context.Background()) == nil
}

// Quit says QUIT, waits briefly for the reply and closes.
func (c *Client) Quit(ctx context.Context) error {
	if c.closed {
		return nil
	}
	defer c.watch(ctx)()
	if err := c.say(ctx, StageQuit, c.cfg.Timeouts.Quit, []byte("QUIT\r\n")); err != nil {
		return err
	}
	if _, err := c.hear(ctx, StageQuit, c.cfg.Timeouts.Quit); err != nil {
		return err
	}
	c.closed = true
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}

// Close closes the connection immediately.
func (c *Client) Close() error {
	if c.closed {
		return nil
	}
	c.closed = true
	if c.raw != c.base {
		// Without this the Close of TLS would wait to say goodbye.
		_ = c.raw.Close()
		_ = c.base.Close()
		return nil
	}
	if err := c.base.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}
