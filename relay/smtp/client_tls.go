package smtp

import (
	"context"
	"crypto/tls"
	"errors"
)

// ErrInjection is the cause of a StageError for octets that came in clear behind
// the reply to STARTTLS. They could be read as if they had come under TLS, so the
// connection is closed (RFC 3207 section 4.2; CVE-2011-0411 and its kin).
var ErrInjection = errors.New("octets in clear behind the reply to STARTTLS")

// StartTLS sends STARTTLS, runs the handshake and sends EHLO again; extensions
// learnt before are forgotten. The error is a *StageError; after one the
// connection is only good for Close, unless the server answered STARTTLS with a
// complete negative reply.
func (c *Client) StartTLS(ctx context.Context, cfg *tls.Config) error {
	if c.TLS() != nil {
		return &StageError{Stage: StageTLS, Err: errors.New("already under TLS")}
	}
	defer c.watch(ctx)()
	reply, err := c.command(ctx, StageTLS, "STARTTLS")
	if err != nil {
		return err
	}
	if reply.Code != 220 {
		return c.refused(ctx, StageTLS, reply)
	}
	if c.r.Buffered() > 0 {
		return c.trouble(ctx, StageTLS, ErrInjection)
	}
	secured := tls.Client(c.base, cfg)
	if err := c.arm(ctx, c.cfg.Timeouts.TLS); err != nil {
		return c.trouble(ctx, StageTLS, err)
	}
	if err := secured.Handshake(); err != nil {
		return c.trouble(ctx, StageTLS, err)
	}
	c.attach(secured)
	return c.hello(ctx)
}

// TLS returns the state of the TLS session, or nil in clear.
func (c *Client) TLS() *tls.ConnectionState {
	if c.tls == nil {
		over, ok := c.conn.(interface{ ConnectionState() tls.ConnectionState })
		if !ok {
			return nil
		}
		if state := over.ConnectionState(); state.HandshakeComplete {
			c.tls = &state
		}
	}
	return c.tls
}
