package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"
)

// patience is how long a reply may take: RFC 5321 section 4.5.3.2.6 asks for ten
// minutes at the final dot.
const patience = 10 * time.Minute

// A target is the server to load.
type target struct {
	address  string
	implicit bool // TLS from the start, else STARTTLS
	tls      *tls.Config
	user     string
	password string
}

// tlsConfig trusts the authorities in caFile, or the system's, or with insecure
// anybody. The key exchange is the one that all servers have, so that they are
// measured with the same work.
func tlsConfig(address, caFile string, insecure bool) (*tls.Config, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("server's address: %w", err)
	}
	config := &tls.Config{
		ServerName: host, InsecureSkipVerify: insecure, MinVersion: tls.VersionTLS12,
		CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256},
	}
	if caFile == "" {
		return config, nil
	}
	pem, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("authorities: %w", err)
	}
	config.RootCAs = x509.NewCertPool()
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("authorities: no certificate in %s", caFile)
	}
	return config, nil
}

// A replyError is an answer that the client did not hope for.
type replyError struct {
	code int
	text string
}

func (e *replyError) Error() string {
	return fmt.Sprintf("the server says: %d %s", e.code, strings.Join(strings.Fields(e.text), " "))
}

// A client is one connection to the target, logged in.
type client struct {
	target     *target
	conn       net.Conn
	in         *bufio.Reader
	out        []byte
	pipelining bool
}

// open connects, secures the connection and logs in.
func (t *target) open(ctx context.Context) (*client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", t.address)
	if err != nil {
		return nil, err
	}
	c := newClient(t, conn)
	if err := c.prepare(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return c, nil
}

func newClient(t *target, conn net.Conn) *client {
	return &client{target: t, conn: conn, in: bufio.NewReader(conn)}
}

func (c *client) prepare(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if c.target.implicit {
		c.conn = tls.Client(c.conn, c.target.tls)
		c.in.Reset(c.conn)
	}
	if _, err := c.expect(220); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if err := c.hello(); err != nil {
		return err
	}
	if !c.target.implicit {
		if err := c.startTLS(); err != nil {
			return err
		}
	}
	secret := base64.StdEncoding.EncodeToString([]byte("\x00" + c.target.user + "\x00" + c.target.password))
	if _, err := c.ask("AUTH PLAIN "+secret, 235); err != nil { // RFC 4954 section 4
		return fmt.Errorf("AUTH: %w", err)
	}
	return nil
}

// startTLS secures the connection and says hello again (RFC 3207 section 4.2).
func (c *client) startTLS() error {
	if _, err := c.ask("STARTTLS", 220); err != nil {
		return fmt.Errorf("STARTTLS: %w", err)
	}
	if c.in.Buffered() > 0 {
		return errors.New("STARTTLS: the server speaks before the handshake")
	}
	c.conn = tls.Client(c.conn, c.target.tls)
	c.in.Reset(c.conn)
	return c.hello()
}

func (c *client) hello() error {
	text, err := c.ask("EHLO localhost", 250)
	if err != nil {
		return fmt.Errorf("EHLO: %w", err)
	}
	c.pipelining = false
	for line := range strings.Lines(text) {
		if strings.EqualFold(strings.TrimSpace(line), "PIPELINING") {
			c.pipelining = true
		}
	}
	return nil
}

func (c *client) ask(command string, want int) (string, error) {
	if _, err := c.conn.Write([]byte(command + "\r\n")); err != nil {
		return "", err
	}
	return c.expect(want)
}

// expect reads a reply of that code; another one is a *replyError.
func (c *client) expect(want int) (string, error) {
	code, text, err := c.reply()
	if err != nil {
		return "", err
	}
	if code != want {
		return "", &replyError{code, text}
	}
	return text, nil
}

// reply reads a reply, the texts of its lines joined (RFC 5321 section 4.2). A line
// that does not fit the buffer is an error.
func (c *client) reply() (code int, text string, err error) {
	var lines []byte
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return 0, "", fmt.Errorf("read a reply: %w", err)
		}
		line = bytes.TrimRight(line, "\r\n")
		if len(line) < 3 || len(lines) > maxAddedHead {
			return 0, "", fmt.Errorf("read a reply: %q is none", line)
		}
		code = int(line[0]-'0')*100 + int(line[1]-'0')*10 + int(line[2]-'0')
		last := len(line) == 3 || line[3] != '-'
		if last && lines == nil && code/100 <= 3 && code != 250 {
			return code, string(line[min(4, len(line)):]), nil
		}
		if last && lines == nil && code == 250 {
			return code, "", nil // the text of the many is of no use
		}
		lines = append(append(lines, line[min(4, len(line)):]...), '\n')
		if last {
			return code, string(lines), nil
		}
	}
}

// send carries message n. Its error is a *replyError when the server refused it;
// any other one leaves open what became of it. The latency is from the final dot
// to its reply.
func (c *client) send(m *message, n int) (latency time.Duration, err error) {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return 0, err
	}
	if err := c.envelope(m.corpus, n); err != nil {
		return 0, err
	}
	m.number(n)
	var dot time.Time
	err = m.each(func(b []byte) error {
		dot = time.Now()
		_, err := c.conn.Write(b)
		return err
	})
	if err != nil {
		return 0, err
	}
	_, err = c.expect(250)
	return time.Since(dot), err
}

// envelope says MAIL, RCPT and DATA, in one group where the server can take it
// (RFC 2920), and hears all the replies.
func (c *client) envelope(of *corpus, n int) error {
	c.out = append(append(append(c.out[:0], "MAIL FROM:<"...), of.from...), ">\r\n"...)
	if err := c.step(250); err != nil {
		return err
	}
	for k := range of.recipients {
		c.out = append(c.out, "RCPT TO:<"...)
		c.out = append(of.appendRecipient(c.out, n, k), ">\r\n"...)
		if err := c.step(250); err != nil {
			return err
		}
	}
	c.out = append(c.out, "DATA\r\n"...)
	if !c.pipelining {
		return c.step(354)
	}
	if _, err := c.conn.Write(c.out); err != nil {
		return err
	}
	var refused error
	for range 1 + of.recipients {
		if _, err := c.expect(250); err != nil {
			if !errors.As(err, new(*replyError)) {
				return err
			}
			refused = errors.Join(refused, err)
		}
	}
	return c.begin(refused)
}

// step sends one command without pipelining, and nothing otherwise.
func (c *client) step(want int) error {
	if c.pipelining {
		return nil
	}
	_, err := c.conn.Write(c.out)
	c.out = c.out[:0]
	if err != nil {
		return err
	}
	if _, err := c.expect(want); err != nil {
		return errors.Join(err, c.reset(err))
	}
	return nil
}

// begin hears the reply to DATA. Where a part of the envelope was refused and DATA
// was not, the connection is of no more use: the message must not go out.
func (c *client) begin(refused error) error {
	_, err := c.expect(354)
	switch {
	case refused == nil && err == nil:
		return nil
	case refused != nil && err == nil:
		return fmt.Errorf("%w: %v", errPartly, refused) // not a *replyError: the connection is in the middle of DATA
	}
	err = errors.Join(refused, err)
	return errors.Join(err, c.reset(err))
}

var errPartly = errors.New("the server takes a part of the envelope only")

// reset makes the connection fit for the next message after a refusal.
func (c *client) reset(err error) error {
	if !errors.As(err, new(*replyError)) {
		return nil
	}
	_, err = c.ask("RSET", 250)
	return err
}

// quit ends the connection as it should be.
func (c *client) quit() {
	_, _ = c.ask("QUIT", 221) // what counts has been answered before
	_ = c.conn.Close()
}
