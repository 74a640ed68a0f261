package check

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"postern/cmd/postern/config"
	"postern/relay/smtp"
)

// talk is a conversation with a listener, as a client that trusts nothing it hears.
// The relay's own client is of no use here: it does what a good client does.
type talk struct {
	conn net.Conn
	r    *smtp.Reader
	tls  *tls.ConnectionState // nil in clear
}

const (
	talkTime     = 15 * time.Second // for a whole conversation
	greetingTime = 3 * time.Second  // without a greeting by then, TLS is tried
)

// door is where a client connects.
type door struct {
	address string
	tls     string // of the listener; "" for one that is not known
	ours    bool   // its certificate is in the configuration's files
	proxied bool   // it wants a PROXY header from this machine
	deaf    bool   // it hears its load balancers only, to which this machine does not belong
}

// doorOf is a listener of the configuration. Where the service manager opens its socket,
// the address is in the socket unit; it is taken for the usual one.
func doorOf(l config.Listener) door {
	d := door{address: reachable(l.Address), tls: l.TLS, ours: true}
	if _, handed := l.Socket(); handed {
		d.address = net.JoinHostPort("127.0.0.1", map[string]string{"starttls": "587", "implicit": "465"}[l.TLS])
	}
	host, _, _ := net.SplitHostPort(d.address)
	own, err := netip.ParseAddr(host)
	proxies, _ := l.Proxies() // validated with the configuration
	for _, network := range proxies {
		// A connection to an address of this machine comes from that address.
		d.proxied = d.proxied || err == nil && network.Contains(own.Unmap())
	}
	d.deaf = len(proxies) > 0 && !d.proxied
	return d
}

// open says whether somebody takes connections there.
func (d door) open(ctx context.Context) bool {
	t, err := connectTalk(ctx, d)
	if t != nil {
		_ = t.conn.Close()
	}
	return err == nil
}

// reachable is where on this machine a listener's address can be had.
func reachable(address string) string {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return address
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1"
		if ip != nil && ip.To4() == nil {
			host = "::1"
		}
	}
	return net.JoinHostPort(host, port)
}

// dialTalk connects and reads the greeting. name is who is expected there. Where the
// kind of TLS is not known, a server that says nothing is taken for one that waits for
// a handshake.
func dialTalk(ctx context.Context, to door, name string) (t *talk, greeting smtp.Reply, err error) {
	if to.tls == "implicit" {
		return dialTLS(ctx, to, name)
	}
	t, err = connectTalk(ctx, to)
	if err != nil {
		return nil, greeting, err
	}
	if to.tls == "" {
		_ = t.conn.SetReadDeadline(time.Now().Add(greetingTime))
	}
	greeting, err = t.hear()
	if err == nil {
		return t, greeting, t.conn.SetReadDeadline(t.until(ctx))
	}
	_ = t.conn.Close()
	var netErr net.Error
	if to.tls == "" && errors.As(err, &netErr) && netErr.Timeout() && ctx.Err() == nil {
		return dialTLS(ctx, to, name)
	}
	return nil, greeting, err
}

func dialTLS(ctx context.Context, to door, name string) (t *talk, greeting smtp.Reply, err error) {
	if t, err = connectTalk(ctx, to); err != nil {
		return nil, greeting, err
	}
	if err = t.secure(ctx, name); err == nil {
		greeting, err = t.hear()
	}
	if err != nil {
		_ = t.conn.Close()
		return nil, greeting, err
	}
	return t, greeting, nil
}

func connectTalk(ctx context.Context, to door) (*talk, error) {
	dialer := net.Dialer{Timeout: talkTime / 3}
	conn, err := dialer.DialContext(ctx, "tcp", to.address)
	if err != nil {
		return nil, err
	}
	t := &talk{conn: conn, r: smtp.NewReader(conn)}
	if err = conn.SetDeadline(t.until(ctx)); err == nil && to.proxied { // and we are nobody's proxy
		_, err = conn.Write([]byte("PROXY UNKNOWN\r\n"))
	}
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

// until is the end of a conversation that begins now.
func (t *talk) until(ctx context.Context) time.Time {
	end := time.Now().Add(talkTime)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(end) {
		end = deadline
	}
	return end
}

// secure runs the handshake. The certificates are judged afterwards, so nothing is
// verified here; no password that means anything is sent.
func (t *talk) secure(ctx context.Context, name string) error {
	if t.r.Buffered() > 0 {
		return errors.New("the server says more before TLS than it was asked")
	}
	if net.ParseIP(name) != nil {
		name = ""
	}
	conn := tls.Client(t.conn, &tls.Config{ServerName: name, InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	if err := conn.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	state := conn.ConnectionState()
	t.conn, t.r, t.tls = conn, smtp.NewReader(conn), &state
	return nil
}

func (t *talk) hear() (smtp.Reply, error) { return smtp.ReadReply(t.r, smtp.ReplyLimits{}) }

// say sends one line and hears the reply.
func (t *talk) say(line string) (smtp.Reply, error) {
	if _, err := t.conn.Write([]byte(line + "\r\n")); err != nil {
		return smtp.Reply{}, err
	}
	return t.hear()
}

// hello says EHLO and returns what the server offers, by keyword.
func (t *talk) hello(name string) (offers map[string]string, err error) {
	reply, err := t.say("EHLO " + name)
	if err != nil {
		return nil, err
	}
	if !reply.IsPositive() {
		return nil, fmt.Errorf("EHLO: %s", reply)
	}
	offers = map[string]string{}
	for _, line := range strings.Split(reply.Text, "\n")[1:] {
		keyword, params, _ := strings.Cut(strings.Replace(line, "=", " ", 1), " ")
		offers[strings.ToUpper(keyword)] = params
	}
	return offers, nil
}

// quit ends the conversation.
func (t *talk) quit() {
	_, _ = t.say("QUIT")
	_ = t.conn.Close()
}
