package smtp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"
)

// source is what the Reader of a Client reads from: the octets that a look at the
// connection took from it, then the connection.
type source struct {
	conn  net.Conn
	early []byte
}

func (s *source) Read(p []byte) (int, error) {
	if len(s.early) > 0 {
		n := copy(p, s.early)
		s.early = s.early[n:]
		return n, nil
	}
	return s.conn.Read(p)
}

// watch lets the end of ctx interrupt what the client does until the function it
// returns is called.
func (c *Client) watch(ctx context.Context) (stop func()) {
	if ctx.Done() == nil {
		return func() {}
	}
	cancel := context.AfterFunc(ctx, func() { _ = c.base.SetDeadline(time.Unix(1, 0)) })
	return func() {
		if !cancel() {
			// The deadline was or will be set at some time from now on, so
			// nothing more can be done with this connection.
			c.interrupted = true
		}
	}
}

// arm sets the deadline of the next step: the earlier of patience and ctx. It must
// look at ctx after the deadline is set, or it could undo what watch does.
func (c *Client) arm(ctx context.Context, patience time.Duration) error {
	until := time.Now().Add(patience)
	if end, ok := ctx.Deadline(); ok && end.Before(until) {
		until = end
	}
	if err := c.base.SetDeadline(until); err != nil {
		return err
	}
	return ctx.Err()
}

// say writes whole command lines. A server that has spoken already is out of step.
func (c *Client) say(ctx context.Context, stage Stage, patience time.Duration, lines []byte) error {
	if c.closed {
		return &StageError{Stage: stage, Err: net.ErrClosed}
	}
	if c.unasked() {
		return c.interjection(ctx, stage)
	}
	if err := c.arm(ctx, patience); err != nil {
		return c.trouble(ctx, stage, err)
	}
	if _, err := c.conn.Write(lines); err != nil {
		return c.trouble(ctx, stage, err)
	}
	return nil
}

// hear reads one reply. 421 is an error: the server closes (RFC 5321 section 3.8),
// and so do we.
func (c *Client) hear(ctx context.Context, stage Stage, patience time.Duration) (Reply, error) {
	if c.closed {
		return Reply{}, &StageError{Stage: stage, Err: net.ErrClosed}
	}
	if c.r.Buffered() == 0 { // else the deadline of the reply before still holds
		if err := c.arm(ctx, patience); err != nil {
			return Reply{}, c.trouble(ctx, stage, err)
		}
	}
	reply, err := ReadReply(c.r, ReplyLimits{Lines: c.cfg.MaxReplyLines, Bytes: c.cfg.MaxReplyBytes})
	if bad, ok := errors.AsType[*malformedReply](err); ok {
		bad.said = c.Masked(bad.said)
	}
	if err != nil {
		return Reply{}, c.trouble(ctx, stage, err)
	}
	c.moved()
	shown := reply
	switch secret := stage == StageAuth || !reply.IsPositive(); {
	case reply.Code == codeChallenge:
		shown.Text = "" // what it says is encoded
	case stage != StageHello || secret:
		shown.Text = c.kept(reply.Text, secret)
		reply = shown
	}
	if c.cfg.Heard != nil {
		c.cfg.Heard(stage, shown)
	}
	if reply.Code == codeClosing {
		_ = c.Close()
		return Reply{}, &StageError{Stage: stage, Reply: reply}
	}
	return reply, nil
}

// keptText is how much is kept of a reply's text, in octets: a transaction holds one for each
// recipient, and the history another.
const keptText = 2 << 10

// kept is what is kept of a text: its beginning and, where it may repeat a secret, Masked. The search
// for a token in a long text takes long.
func (c *Client) kept(text string, secret bool) string {
	cut := len(text) > keptText
	if cut {
		text = text[:keptText]
	}
	if secret {
		text = c.Masked(text)
	}
	if !cut {
		return text
	}
	// Of a secret that begins at the end, too little was seen.
	return strings.ToValidUTF8(text[:max(len(text)-leastEcho+1, 0)], "") + "…"
}

// codeClosing is the reply that may come at any time and after which the server
// closes.
const codeClosing = 421

// codeChallenge is the reply that asks for the next response of AUTH (RFC 4954 section 4).
const codeChallenge = 334

// command says one line, without its CRLF, and hears the reply.
func (c *Client) command(ctx context.Context, stage Stage, line string) (Reply, error) {
	c.line = append(append(c.line[:0], line...), '\r', '\n')
	if err := c.say(ctx, stage, c.cfg.Timeouts.Command, c.line); err != nil {
		return Reply{}, err
	}
	return c.hear(ctx, stage, c.cfg.Timeouts.Command)
}

// refused is the error for a reply that is not positive: what the server said when
// it is negative, else one that makes no sense here.
func (c *Client) refused(ctx context.Context, stage Stage, reply Reply) error {
	if reply.IsTemporary() || reply.IsPermanent() {
		return &StageError{Stage: stage, Reply: reply}
	}
	return c.outOfStep(ctx, stage, reply)
}

// outOfStep closes the connection because of a reply that answers nothing.
func (c *Client) outOfStep(ctx context.Context, stage Stage, reply Reply) error {
	reply.Text = c.Masked(reply.Text)
	return c.trouble(ctx, stage, &OutOfStepError{Said: reply})
}

// interjection hears what the server said without being asked: 421, or trouble.
func (c *Client) interjection(ctx context.Context, stage Stage) error {
	reply, err := c.hear(ctx, stage, lastWords)
	if err != nil {
		return err
	}
	return c.outOfStep(ctx, stage, reply)
}

// trouble closes the connection and says at which stage and why.
func (c *Client) trouble(ctx context.Context, stage Stage, err error) error {
	_ = c.Close()
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	return &StageError{Stage: stage, Err: err}
}

const (
	// glance is how long a look at a TLS connection may take on which something
	// came that may be TLS's own affair.
	glance = 10 * time.Millisecond
	// lastWords is how long we wait for the rest of what a server says when it was
	// not asked or is hanging up.
	lastWords = time.Second
)

// unasked reports that we hold octets that answer no command.
func (c *Client) unasked() bool { return c.r.Buffered() > 0 || len(c.src.early) > 0 }

// silent looks, without waiting, whether the server has said something or has
// closed. The octets that it takes from the connection are kept for the Reader.
func (c *Client) silent(ctx context.Context) error {
	if c.unasked() {
		return ErrOutOfStep
	}
	if !c.peek.waiting() {
		return nil
	}
	// Octets or the end. Under TLS they may be a ticket or a new key, which a read
	// consumes without returning anything.
	if err := c.arm(ctx, glance); err != nil {
		return err
	}
	var buf [512]byte
	n, err := c.conn.Read(buf[:])
	if n > 0 {
		c.src.early = append(c.src.early, buf[:n]...)
		return ErrOutOfStep
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return ctx.Err()
	}
	return err
}

// peeker looks into a socket. The zero value sees nothing.
type peeker struct {
	conn  syscall.RawConn
	look  func(fd uintptr)
	found *bool
}

func newPeeker(conn syscall.Conn) peeker {
	raw, err := conn.SyscallConn()
	if err != nil {
		return peeker{}
	}
	found := new(bool)
	return peeker{conn: raw, found: found, look: func(fd uintptr) { *found = readable(fd) }}
}

// waiting reports that octets were received or that the peer has closed.
func (p peeker) waiting() bool {
	if p.conn == nil {
		return false
	}
	// Control and not Read: a deadline of the step before may have passed.
	if err := p.conn.Control(p.look); err != nil {
		return false
	}
	return *p.found
}
