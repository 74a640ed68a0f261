package delivery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"postern/internal/share"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// dialer begins conversations.
type dialer struct {
	cfg     *Config
	free    net.Dialer // to upstreams
	guarded net.Dialer // to MX
	connect func(context.Context, target) (net.Conn, error)
	slots   *share.Pool // connections; nil for probes
	took    sync.Map    // by upstream, the mechanism that it took last
}

func newDialer(cfg *Config) *dialer {
	d := &dialer{cfg: cfg}
	d.connect = d.dial
	d.free.Timeout = cfg.ConnectTime
	d.guarded.Timeout = cfg.ConnectTime
	if !cfg.AllowPrivateMX {
		d.guarded.Control = refuseSpecial
	}
	return d
}

// conn is a conversation that is ready for transactions.
type conn struct {
	client  *smtp.Client
	host    string // as RemoteMTA
	addr    netip.AddrPort
	tls     string // facts, "" in clear
	version int    // of the upstream's settings
	sent    int    // transactions
	kept    bool   // it has been idle
	onward  bool   // a message came here from another host of the destination
	walk    walk   // that led here
	leave   func() // gives back its part of the address
}

// takes reports that the server's limits (RFC 9422) have room on this connection for a
// transaction of j.
func (c *conn) takes(j *job) bool {
	return !c.client.Exhausted() && c.client.Admits(j.rcpts[0].Address)
}

// target is one address to try.
type target struct {
	host     string
	addr     netip.AddrPort
	upstream *upstream.Account // nil for mx
	token    oauth.Token       // of an upstream that has a grant
	progress *atomic.Uint64    // see smtp.ClientConfig
	trace    *trace            // of a probe; nil for workers
}

// origin is our end of connections to an upstream or, where up is nil, to MX.
func (d *dialer) origin(up *upstream.Account) upstream.Origin {
	if up == nil {
		return d.cfg.Origin
	}
	return up.Or(d.cfg.Origin)
}

// open begins the conversation of a worker with an upstream or, where up is nil, with a mail
// host of domain.
func (d *dialer) open(ctx context.Context, domain string, need need, by *worker) (*conn, *trouble) {
	by.talking.Store(true)
	defer by.talking.Store(false)
	w, t := d.walkTo(ctx, domain, need.upstream)
	w.progress, w.tries, w.sessions = &by.progress, need.spent.tries, need.spent.sessions
	if !need.spent.begun.IsZero() {
		w.begun = need.spent.begun
	}
	if t == nil {
		by.talking.Store(false) // what keeps a token waiting is no silent server
		t = w.fetchToken(ctx)
		by.talking.Store(true)
	}
	if t != nil {
		return nil, t
	}
	return w.next(ctx)
}

// anySelf reports that one of the addresses with that port is a listener of this
// server.
func (d *dialer) anySelf(addrs []netip.Addr, port int) bool {
	for _, addr := range addrs {
		for _, self := range d.cfg.Self {
			if int(self.Port()) != port {
				continue
			}
			own := self.Addr().Unmap()
			if own == addr || own.IsUnspecified() && IsLocal(addr) {
				return true
			}
		}
	}
	return false
}

// IsLocal reports an address of this machine.
func IsLocal(addr netip.Addr) bool {
	if addr.IsLoopback() || addr.IsUnspecified() {
		return true
	}
	list, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil && p.Addr().Unmap() == addr {
			return true
		}
	}
	return false
}

// try begins a conversation with one address. A token that the server refuses is worth one
// other, over a new connection: the old one may have ended with the refusal.
func (d *dialer) try(ctx context.Context, to *target) (*conn, *trouble) {
	c, t := d.tryOnce(ctx, *to)
	if t != nil && t.badToken && d.renew(ctx, to, t) {
		to.trace.trouble(to.addr, t)
		c, t = d.tryOnce(ctx, *to)
	}
	return c, t
}

// tryOnce begins a conversation with one address. A handshake that fails where TLS is
// only opportunistic is tried once more without it: the recipient's server asks
// for no more (RFC 7435).
func (d *dialer) tryOnce(ctx context.Context, to target) (*conn, *trouble) {
	policy := policyOf(to)
	c, t, handshake := d.converse(ctx, to, policy)
	if handshake && policy.mode == upstream.TLSOpportunistic && ctx.Err() == nil {
		to.trace.trouble(to.addr, t)
		policy.mode = upstream.TLSNone
		c, t, _ = d.converse(ctx, to, policy)
	}
	return c, t
}

// converse connects, greets, and sets up TLS and authentication. handshake says that a TLS
// handshake began and failed.
func (d *dialer) converse(ctx context.Context, to target, policy tlsPolicy) (c *conn, t *trouble, handshake bool) {
	to.trace.secures(policy.config)
	netConn, err := d.connect(ctx, to)
	if err != nil {
		return nil, connectTrouble(to, err), false
	}
	to.trace.step(Step{Stage: smtp.StageConnect, Addr: to.addr})
	c = &conn{host: to.host, addr: to.addr}
	if policy.mode == upstream.TLSImplicit {
		secured, err := policy.handshake(ctx, netConn, d.cfg.Timeouts.TLS)
		if err != nil {
			netConn.Close()
			return nil, tlsTrouble(to, err), true
		}
		state := secured.ConnectionState()
		c.tls = policy.facts(&state)
		netConn = secured
	}
	c.client = smtp.NewClient(netConn, smtp.ClientConfig{
		Hello: cmp.Or(d.origin(to.upstream).Hello, d.cfg.Hello), Timeouts: d.cfg.Timeouts, Progress: to.progress, Heard: to.trace.hears(),
	})
	t, handshake = d.begin(ctx, c, to, policy)
	if t != nil {
		c.client.Close()
		return nil, t, handshake
	}
	return c, nil, false
}

// begin brings a new connection to the point where transactions can be sent.
func (d *dialer) begin(ctx context.Context, c *conn, to target, policy tlsPolicy) (t *trouble, handshake bool) {
	if err := c.client.Greet(ctx); err != nil {
		return conversationTrouble(c, to, err), false
	}
	if t, handshake = policy.secure(ctx, c, to); t == nil {
		t = d.logIn(ctx, c, to)
	}
	if t != nil {
		t.greeted = true
	}
	return t, handshake
}

// logIn authenticates with an upstream that has credentials.
func (d *dialer) logIn(ctx context.Context, c *conn, to target) *trouble {
	if up := to.upstream; up != nil && up.Username != "" {
		if err := d.authenticate(ctx, c.client, to); err != nil {
			return authTrouble(c, to, err)
		}
	}
	return nil
}

func (d *dialer) dial(ctx context.Context, to target) (net.Conn, error) {
	dialer := d.guarded
	if to.upstream != nil {
		dialer = d.free
	}
	source := d.origin(to.upstream).SourceFor(to.addr.Addr())
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	c, err := dialer.DialContext(ctx, "tcp", to.addr.String())
	if source.IsValid() && errors.Is(err, syscall.EADDRNOTAVAIL) && !IsLocal(source) {
		err = &SourceError{source}
	}
	return c, err
}

// SourceError says that connections are to come from an address that this machine does not have.
type SourceError struct{ Source netip.Addr }

func (e *SourceError) Error() string {
	return "this machine does not have the source address " + e.Source.String()
}

// connectTrouble reveals of an MX only that it could not be reached: a user who chooses the
// recipient must not learn from it which ports of which hosts are open.
func connectTrouble(to target, err error) *trouble {
	err = fmt.Errorf("connect to %s: %w", to.host, err)
	if isOurs(err) {
		return &trouble{reply: smtp.Temporary(451, 3, 2, "this server has no room for another connection now"), err: err, crowded: true}
	}
	if source := (*SourceError)(nil); errors.As(err, &source) {
		return &trouble{reply: smtp.Temporary(451, 3, 5, source.Error()), err: err}
	}
	if to.upstream == nil {
		if errors.Is(err, errSpecial) {
			return failure(smtp.Permanent(550, 4, 4, "mail host "+to.host+" has a private or special address"), err)
		}
		return &trouble{reply: smtp.Temporary(451, 4, 1, "no connection to mail host "+to.host), err: err}
	}
	why := "no connection"
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "connection refused"
	case isTimeout(err):
		why = "no answer in time"
	}
	text := "upstream " + to.upstream.Name + " at " + net.JoinHostPort(to.host, strconv.Itoa(to.upstream.Port)) + ": " + why
	return &trouble{reply: smtp.Temporary(451, 4, 1, text), err: err}
}

// isOurs reports that the machine had no descriptor or memory for a connection or a
// question. net.DNSError keeps only the text of that.
func isOurs(err error) bool {
	for _, want := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if dns := (*net.DNSError)(nil); errors.Is(err, want) || errors.As(err, &dns) && strings.HasSuffix(dns.Err, want.Error()) {
			return true
		}
	}
	return false
}

// conversationTrouble is a server's refusal, or silence, before any transaction.
func conversationTrouble(c *conn, to target, err error) *trouble {
	reply, ours := troubleReply(smtp.Result{Err: err})
	return &trouble{
		reply: reply, said: !ours, err: fmt.Errorf("talk to %s: %w", to.host, err),
		host: to.host, addr: to.addr, tls: c.tls, closed: isClosed(to, err),
	}
}
