package connect

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"postern/internal/share"
	"postern/internal/special"
	"postern/relay/smtp"
	"postern/relay/transport"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// Dialer begins conversations. It is safe for concurrent use.
type Dialer struct {
	cfg     *Config
	free    net.Dialer // to upstreams
	guarded net.Dialer // to MX
	took    sync.Map   // by upstream, the mechanism that it took last

	// Dial makes one connection; tests replace it before the first use.
	Dial func(context.Context, Target) (net.Conn, error)
	// Slots bounds the part of all connections that one MX address may have; nil: no bounds.
	Slots *share.Pool
}

// New makes a Dialer.
func New(cfg Config) *Dialer {
	cfg = cfg.withDefaults()
	d := &Dialer{cfg: &cfg}
	d.Dial = d.dial
	d.free.Timeout = cfg.ConnectTime
	d.guarded.Timeout = cfg.ConnectTime
	if !cfg.AllowPrivateMX {
		d.guarded.Control = special.Refuse
	}
	return d
}

// Conn is a conversation that is ready for transactions.
type Conn struct {
	Client *smtp.Client
	Host   string // its name, for RemoteMTA
	Addr   netip.AddrPort
	TLS    string // facts; of a session in clear "", or "- - clear" and where its policy comes from
	Walk   Walk   // that led here

	leave     func() // gives back its part of the address
	failedTLS bool   // it is in clear, as TLS was offered and failed
}

// Close ends the connection, without QUIT.
func (c *Conn) Close() {
	_ = c.Client.Close() // it has served its purpose
	if c.leave != nil {
		c.leave()
	}
}

// Target is one address to try.
type Target struct {
	Host     string
	Addr     netip.AddrPort
	Upstream *upstream.Account // nil for MX

	token    oauth.Token      // of an upstream that has a grant
	policy   transport.Policy // of an MX
	progress *atomic.Uint64   // see smtp.ClientConfig
	trace    *trace           // of a probe; nil for deliveries
}

// origin is our end of connections to an upstream or, where up is nil, to MX.
func (d *Dialer) origin(up *upstream.Account) upstream.Origin {
	if up == nil {
		return d.cfg.Origin
	}
	return up.Or(d.cfg.Origin)
}

// Watch follows a conversation from outside.
type Watch struct {
	Talking  *atomic.Bool   // the server is at work
	Progress *atomic.Uint64 // see smtp.ClientConfig

	// AnyTLS says that the mail goes whatever the hosts of the domain must prove (RFC 8689 section 5).
	AnyTLS bool
	// Arrive is called with the site that hosts a domain, and reports whether there is a place; nil: there is.
	Arrive func(site string) bool
}

// ErrNoPlace is not the server's trouble: Watch.Arrive had no place, and nothing was tried.
var ErrNoPlace = errors.New("the site has all the connections that it may")

// Open begins a conversation with an upstream or, where up is nil, with a mail host of domain. before
// is what the attempt has spent so far.
func (d *Dialer) Open(ctx context.Context, domain string, up *upstream.Account, before Spent, watch Watch) (*Conn, *Trouble) {
	watch.Talking.Store(true)
	defer watch.Talking.Store(false)
	w, t := d.walkTo(ctx, domain, up)
	w.progress, w.anyTLS, w.Tries, w.Sessions = watch.Progress, watch.AnyTLS, before.Tries, before.Sessions
	if !before.Begun.IsZero() {
		w.Begun = before.Begun
	}
	if t == nil {
		watch.Talking.Store(false) // a slow authority is not a silent server
		t = w.fetchToken(ctx)
		watch.Talking.Store(true)
	}
	if t != nil {
		return nil, t
	}
	if up == nil && watch.Arrive != nil && !watch.Arrive(w.site()) {
		return nil, &Trouble{Err: ErrNoPlace}
	}
	return w.Next(ctx)
}

// anySelf reports that one of the addresses with that port is a listener of this
// server.
func (d *Dialer) anySelf(addrs []netip.Addr, port int) bool {
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
func (d *Dialer) try(ctx context.Context, to *Target) (*Conn, *Trouble) {
	c, t := d.tryOnce(ctx, *to)
	if t != nil && t.badToken && d.renew(ctx, to, t) {
		to.trace.trouble(to.Addr, t)
		c, t = d.tryOnce(ctx, *to)
	}
	return c, t
}

// tryOnce begins a conversation with one address. A handshake that fails where TLS is
// only opportunistic is tried once more without it: the recipient's server asks
// for no more (RFC 7435).
func (d *Dialer) tryOnce(ctx context.Context, to Target) (*Conn, *Trouble) {
	policy := d.policyOf(to)
	c, t, handshake := d.converse(ctx, to, policy)
	if handshake && policy.mode == upstream.TLSOpportunistic && ctx.Err() == nil {
		to.trace.trouble(to.Addr, t)
		policy.mode = upstream.TLSNone
		if c, t, _ = d.converse(ctx, to, policy); c != nil {
			c.failedTLS = true
		}
	}
	return c, t
}

// converse connects, greets, and sets up TLS and authentication. handshake says that a TLS
// handshake began and failed.
func (d *Dialer) converse(ctx context.Context, to Target, policy tlsPolicy) (c *Conn, t *Trouble, handshake bool) {
	to.trace.secures(policy.config)
	netConn, err := d.Dial(ctx, to)
	if err != nil {
		return nil, connectTrouble(to, err), false
	}
	to.trace.step(Step{Stage: smtp.StageConnect, Addr: to.Addr})
	c = &Conn{Host: to.Host, Addr: to.Addr}
	if policy.mode == upstream.TLSImplicit {
		secured, err := policy.handshake(ctx, netConn, d.cfg.Timeouts.TLS)
		if err != nil {
			netConn.Close()
			return nil, tlsTrouble(to, err), true
		}
		state := secured.ConnectionState()
		c.TLS = policy.facts(&state)
		netConn = secured
	}
	c.Client = smtp.NewClient(netConn, smtp.ClientConfig{
		Hello: cmp.Or(d.origin(to.Upstream).Hello, d.cfg.Hello), Timeouts: d.cfg.Timeouts, Progress: to.progress, Heard: to.trace.hears(),
	})
	t, handshake = d.begin(ctx, c, to, policy)
	if t != nil {
		c.Client.Close()
		return nil, t, handshake
	}
	return c, nil, false
}

// begin brings a new connection to the point where transactions can be sent.
func (d *Dialer) begin(ctx context.Context, c *Conn, to Target, policy tlsPolicy) (t *Trouble, handshake bool) {
	if err := c.Client.Greet(ctx); err != nil {
		return conversationTrouble(c, to, err), false
	}
	if t, handshake = policy.secure(ctx, c, to); t == nil {
		if c.TLS == "" {
			c.TLS = policy.facts(nil)
		}
		t = d.logIn(ctx, c, to)
	}
	if t != nil {
		t.greeted = true
	}
	return t, handshake
}

// logIn authenticates with an upstream that has credentials.
func (d *Dialer) logIn(ctx context.Context, c *Conn, to Target) *Trouble {
	if up := to.Upstream; up != nil && up.Username != "" {
		if err := d.authenticate(ctx, c.Client, to); err != nil {
			return authTrouble(c, to, err)
		}
	}
	return nil
}

func (d *Dialer) dial(ctx context.Context, to Target) (net.Conn, error) {
	dialer := d.guarded
	if to.Upstream != nil {
		dialer = d.free
	}
	source := d.origin(to.Upstream).SourceFor(to.Addr.Addr())
	if source.IsValid() {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(source, 0))
	}
	c, err := dialer.DialContext(ctx, "tcp", to.Addr.String())
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
func connectTrouble(to Target, err error) *Trouble {
	err = fmt.Errorf("connect to %s: %w", to.Host, err)
	if isOurs(err) {
		return &Trouble{Reply: smtp.Temporary(451, 3, 2, "this server has no room for another connection now"), Err: err, Crowded: true}
	}
	if source := (*SourceError)(nil); errors.As(err, &source) {
		return &Trouble{Reply: smtp.Temporary(451, 3, 5, source.Error()), Err: err}
	}
	if to.Upstream == nil {
		if errors.Is(err, special.Err) {
			return failure(smtp.Permanent(550, 4, 4, "mail host "+to.Host+" has a private or special address"), err)
		}
		return &Trouble{Reply: smtp.Temporary(451, 4, 1, "no connection to mail host "+to.Host), Err: err}
	}
	why := "no connection"
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		why = "connection refused"
	case IsTimeout(err):
		why = "no answer in time"
	}
	text := "upstream " + to.Upstream.Name + " at " + net.JoinHostPort(to.Host, strconv.Itoa(to.Upstream.Port)) + ": " + why
	return &Trouble{Reply: smtp.Temporary(451, 4, 1, text), Err: err}
}

// isOurs reports that the machine had no descriptor or memory for a connection or a
// question.
func isOurs(err error) bool {
	for _, want := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM} {
		if errors.Is(err, want) {
			return true
		}
	}
	return false
}

// conversationTrouble is a server's refusal, or silence, before any transaction.
func conversationTrouble(c *Conn, to Target, err error) *Trouble {
	reply, ours := replyOf(err)
	return &Trouble{
		Reply: reply, Said: !ours, Err: fmt.Errorf("talk to %s: %w", to.Host, err),
		Host: to.Host, Addr: to.Addr, TLS: c.TLS, Closed: isClosed(to, err),
	}
}
