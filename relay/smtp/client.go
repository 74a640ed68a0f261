package smtp

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"time"
)

// Timeouts are the patience of a client for each step (RFC 5321 section 4.5.3.2).
type Timeouts struct {
	Greeting  time.Duration // 5 min
	Command   time.Duration // EHLO, MAIL, RCPT, RSET, AUTH: 5 min
	DataInit  time.Duration // 2 min
	DataBlock time.Duration // each block of the body: 3 min
	DataDone  time.Duration // the reply to the final dot: 10 min
	TLS       time.Duration // the handshake
	Quit      time.Duration
}

// ClientConfig configures a Client; zero durations and bounds take the defaults.
type ClientConfig struct {
	Hello         string // our name for EHLO
	Timeouts      Timeouts
	MaxReplyLines int
	MaxReplyBytes int
}

// Client speaks to one server over one connection. It is not safe for concurrent use.
type Client struct{}

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
	StageData     Stage = "data" // between DATA and its 354
	StageBody     Stage = "body" // while the message is written
	StageDot      Stage = "dot"  // the final dot was (or may have been) sent
)

// StageError is a conversation that ended before its time. Reply is what the
// server said if it said a complete reply; otherwise Err is the trouble (I/O,
// timeout, a malformed reply).
type StageError struct {
	Stage Stage
	Reply Reply
	Err   error
}

func (e *StageError) Error() string { panic("not yet") }
func (e *StageError) Unwrap() error { return e.Err }

// SASL is one client side exchange; go-sasl's Client fits.
type SASL interface {
	Start() (mech string, initial []byte, err error)
	Next(challenge []byte) (response []byte, err error)
}

// Transaction is one message for some recipients of one destination.
type Transaction struct {
	Mail  MailCommand
	Rcpts []RcptCommand
	Body  io.Reader // the message, CRLF lines, not dot-stuffed
	Size  int64     // octets of Body, for SIZE=
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
	// Err is trouble with the connection: a *StageError. The connection is closed.
	Err error
	// DotSent says that the final dot was, or may have been, sent. With Err set the
	// outcome for the recipients with a zero Reply is unknown.
	DotSent bool
	// DSN says that NOTIFY/ORCPT were passed on to a server that offers DSN.
	DSN bool
}

// NewClient wraps an open connection; nothing is sent or read yet.
func NewClient(conn net.Conn, cfg ClientConfig) *Client { panic("not yet") }

// Greet reads the greeting and sends EHLO, falling back to HELO on a 5yz. The
// error is a *StageError.
func (c *Client) Greet(ctx context.Context) error { panic("not yet") }

// StartTLS sends STARTTLS, runs the handshake and sends EHLO again; extensions
// learnt before are forgotten. The error is a *StageError; after one the
// connection is only good for Close, unless the server answered STARTTLS with a
// complete negative reply.
func (c *Client) StartTLS(ctx context.Context, cfg *tls.Config) error { panic("not yet") }

// TLS returns the state of the TLS session, or nil in clear.
func (c *Client) TLS() *tls.ConnectionState { panic("not yet") }

// Extension returns the parameters of an EHLO keyword and whether it is offered.
func (c *Client) Extension(keyword string) (params string, ok bool) { panic("not yet") }

// Auth runs a SASL exchange. The error is a *StageError.
func (c *Client) Auth(ctx context.Context, mech SASL) error { panic("not yet") }

// Send runs one transaction, pipelined when the server offers it. SIZE, BODY,
// SMTPUTF8 and the DSN parameters are written only where offered; a message
// that needs SMTPUTF8 or (by MailCommand.Body) 8BITMIME of a server without it is answered by a
// made-up 5yz reply for every recipient without a word on the wire.
func (c *Client) Send(ctx context.Context, tx Transaction) Result { panic("not yet") }

// Usable reports that another transaction may be sent on this connection.
func (c *Client) Usable() bool { panic("not yet") }

// Quit says QUIT, waits briefly for the reply and closes.
func (c *Client) Quit(ctx context.Context) error { panic("not yet") }

// Close closes the connection at once.
func (c *Client) Close() error { panic("not yet") }
