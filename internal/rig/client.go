package rig

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

// stepTime bounds each step of a client's conversation. RFC 5321 section 4.5.3.2
// has longer ones; the relay itself promises an answer to the dot in 60 s.
const stepTime = 100 * time.Second

// Client is one connection to a node. It is plain on purpose.
type Client struct {
	conn net.Conn
	in   *bufio.Reader
}

// stepError is a reply that was not the one that a step needs.
type stepError struct {
	step string
	code int
	text string
}

func (e *stepError) Error() string { return fmt.Sprintf("%s: %d %s", e.step, e.code, e.text) }

// Proxied is the part of a node's configuration (NodeConfig.Extra) that DialFrom needs.
const Proxied = `
[[listener]]
address = "127.0.0.1:0"
tls = "implicit"
proxy_protocol = ["127.0.0.0/8"]
`

// Dial connects to a node, over implicit TLS or STARTTLS, and says EHLO.
func (r *Rig) Dial(n *Node, implicit bool) (*Client, error) { return r.dial(n, implicit, "", "") }

// DialAt is Dial over implicit TLS from a loopback address.
func (r *Rig) DialAt(n *Node, from string) (*Client, error) { return r.dial(n, true, from, "") }

// DialFrom connects to a node as a load balancer does for a client of this IPv4 address,
// over implicit TLS, and says EHLO.
func (r *Rig) DialFrom(n *Node, client string) (*Client, error) {
	return r.dial(n, true, "", "PROXY TCP4 "+client+" 192.0.2.1 40000 465\r\n")
}

func (r *Rig) dial(n *Node, implicit bool, from, header string) (*Client, error) {
	addr, err := n.Addr(implicit)
	if err != nil {
		return nil, err
	}
	dialer := net.Dialer{Timeout: stepTime}
	if from != "" {
		dialer.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := dialer.Dial("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("connect: %w", bare(err))
	}
	c := &Client{conn: conn}
	err = c.Write(header)
	if err == nil {
		err = c.begin(r.tls, implicit)
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *Client) begin(cfg *tls.Config, implicit bool) error {
	if implicit {
		c.conn = tls.Client(c.conn, cfg)
	}
	c.in = bufio.NewReader(c.conn)
	if err := c.Expect("greeting", 220); err != nil {
		return err
	}
	if err := c.Say("EHLO", 250, "EHLO client.test"); err != nil || implicit {
		return err
	}
	if err := c.Say("STARTTLS", 220, "STARTTLS"); err != nil {
		return err
	}
	c.conn = tls.Client(c.conn, cfg)
	c.in = bufio.NewReader(c.conn)
	return c.Say("EHLO", 250, "EHLO client.test")
}

// Login authenticates by PLAIN.
func (c *Client) Login(user, password string) error {
	token := base64.StdEncoding.EncodeToString([]byte("\x00" + user + "\x00" + password))
	return c.Say("AUTH", 235, "AUTH PLAIN "+token)
}

// Close ends the connection without a word.
func (c *Client) Close() { _ = c.conn.Close() }

// Say sends a line and wants a reply of code.
func (c *Client) Say(step string, code int, line string) error {
	if err := c.Write(line + "\r\n"); err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	return c.Expect(step, code)
}

// Write sends octets as they are, in one write.
func (c *Client) Write(octets string) error {
	_ = c.conn.SetDeadline(time.Now().Add(stepTime))
	if _, err := c.conn.Write([]byte(octets)); err != nil {
		return fmt.Errorf("write: %w", bare(err))
	}
	return nil
}

// Expect reads a reply, which must have a code.
func (c *Client) Expect(step string, code int) error {
	got, text, err := c.Reply()
	if err != nil {
		return fmt.Errorf("%s: %w", step, err)
	}
	if got != code {
		return &stepError{step, got, text}
	}
	return nil
}

// Reply reads one complete reply (RFC 5321 section 4.2). A line without its end is
// none.
func (c *Client) Reply() (code int, text string, err error) {
	_ = c.conn.SetDeadline(time.Now().Add(stepTime))
	for {
		line, err := c.in.ReadString('\n')
		if err != nil {
			return 0, "", fmt.Errorf("read: %w", bare(err))
		}
		line, ended := strings.CutSuffix(line, "\r\n")
		if !ended || len(line) < 3 {
			return 0, "", fmt.Errorf("no reply: %q", line)
		}
		if code, err = strconv.Atoi(line[:3]); err != nil {
			return 0, "", fmt.Errorf("no reply: %q", line)
		}
		text += strings.TrimLeft(line[3:], " -") + " "
		if len(line) == 3 || line[3] == ' ' {
			return code, strings.TrimSpace(text), nil
		}
	}
}

// bare strips addresses from a network error, so that equal errors count as one.
func bare(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		return bare(op.Err)
	}
	return err
}

// Code is the code of the first reply in err, 0 when err is no reply.
func Code(err error) int {
	if step, ok := errors.AsType[*stepError](err); ok {
		return step.code
	}
	return 0
}
