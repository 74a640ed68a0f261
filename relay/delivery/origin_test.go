package delivery

import (
	"crypto/tls"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/upstream"
)

// seenBy records from where a server was connected to, and the names it was greeted by.
type seenBy struct {
	mu    sync.Mutex
	from  []string
	hello []string
}

func (s *seenBy) config(cfg smtptest.Config) smtptest.Config {
	cfg.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseHello: func(at smtptest.Session) smtptest.Action {
		s.mu.Lock()
		defer s.mu.Unlock()
		host, _, _ := net.SplitHostPort(at.Remote)
		s.from, s.hello = append(s.from, host), append(s.hello, at.Command)
		return smtptest.Normal()
	}}
	return cfg
}

// Our end of a connection is the upstream's, else the node's; an address that this machine does
// not have makes mail wait, at an upstream and at MX.
func TestOrigin(t *testing.T) {
	t.Parallel()
	const mine, none, six = "127.0.0.2", "192.0.2.77", "2001:db8::77"
	for name, test := range map[string]struct {
		mx             bool
		account, node  upstream.Origin
		from, greeting string // "": it waits
		says           string
	}{
		"as ever":             {false, upstream.Origin{}, upstream.Origin{}, "127.0.0.1", "EHLO relay.test", ""},
		"the upstream's":      {false, upstream.Origin{Source: mine, Hello: "out.test"}, upstream.Origin{Source: none, Hello: "x.test"}, mine, "EHLO out.test", ""},
		"the node's":          {false, upstream.Origin{}, upstream.Origin{Source: mine, Hello: "node.test"}, mine, "EHLO node.test", ""},
		"the node's, to MX":   {true, upstream.Origin{}, upstream.Origin{Source: mine + "," + six, Hello: "node.test"}, mine, "EHLO node.test", ""},
		"left to the system":  {false, upstream.Origin{Source: "0.0.0.0"}, upstream.Origin{Source: none}, "127.0.0.1", "EHLO relay.test", ""},
		"the other IP's":      {false, upstream.Origin{Source: six, IP: "both"}, upstream.Origin{}, "127.0.0.1", "EHLO relay.test", ""},
		"not there":           {false, upstream.Origin{Source: none}, upstream.Origin{}, "", "", "451 4.3.5 this machine does not have the source address 192.0.2.77"},
		"not there, to MX":    {true, upstream.Origin{}, upstream.Origin{Source: none}, "", "", "451 4.3.5 this machine does not have the source address 192.0.2.77"},
		"IPv6 only":           {false, upstream.Origin{IP: "6"}, upstream.Origin{}, "", "", "451 4.4.3 host.test: it has no address of the version of IP"},
		"IPv6 only, to MX":    {true, upstream.Origin{}, upstream.Origin{IP: "6"}, "", "", "451 4.4.3 host.test: it has no address of the version of IP"},
		"a source of IPv6":    {false, upstream.Origin{Source: six}, upstream.Origin{}, "", "", "451 4.4.3 host.test: it has no address of the version of IP"},
		"its own, node's IP6": {false, upstream.Origin{Source: mine}, upstream.Origin{IP: "6"}, mine, "EHLO relay.test", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var seen seenBy
			server := smtptest.Start(t, seen.config(smtptest.Config{}))
			dns := &dnstest.Zones{}
			dns.AddMX("one.test", 10, "host.test")
			dns.AddHost("host.test", "127.0.0.1")
			up := upstreamAt(server)
			up.Host, up.Origin = "host.test", test.account
			if test.mx {
				up = nil
			}
			o := sendVia(t, up, Config{Connect: connect.Config{Origin: test.node, DNS: dns.Resolver(), MXPort: server.Port(), AllowPrivateMX: true}})
			if test.from == "" {
				if o.Result != queue.Deferred || !strings.HasPrefix(o.Reply.String(), test.says) || server.Conns() != 0 {
					t.Errorf("%s %v over %d connections, want %q", o.Result, o.Reply, server.Conns(), test.says)
				}
				return
			}
			if o.Result != queue.Delivered || !slices.Equal(seen.from, []string{test.from}) || !slices.Equal(seen.hello, []string{test.greeting}) {
				t.Errorf("%s %v from %q by %q", o.Result, o.Reply, seen.from, seen.hello)
			}
		})
	}
}

// An expected name takes the place of the host's, and a pin that of authority, name and time.
func TestExpectedCertificate(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	other := ca.ServerConfig(t, "mail.provider.test")
	now := time.Now()
	old := ca.LeafBetween(t, now.Add(-2*time.Hour), now.Add(-time.Hour), "elsewhere.test").ServerConfig()
	spare := upstream.Pin(other.Certificates[0].Leaf)
	for name, test := range map[string]struct {
		shown  *tls.Config
		change func(*upstream.Account)
		want   string // of the facts; "" when it waits
	}{
		"expected name":        {other, func(up *upstream.Account) { up.TLSName, up.CA = "mail.provider.test.", string(ca.PEM()) }, "verified"},
		"another name":         {other, func(up *upstream.Account) { up.TLSName, up.CA = "provider.test", string(ca.PEM()) }, ""},
		"name, no authority":   {other, func(up *upstream.Account) { up.TLSName = "mail.provider.test" }, ""},
		"pin of an old one":    {old, func(up *upstream.Account) { up.TLSPins = upstream.Pin(old.Certificates[0].Leaf) }, "pinned"},
		"pins for a roll-over": {old, func(up *upstream.Account) { up.TLSPins = spare + "," + upstream.Pin(old.Certificates[0].Leaf) }, "pinned"},
		"another key":          {old, func(up *upstream.Account) { up.TLSPins = spare }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := smtptest.Start(t, smtptest.Config{TLS: test.shown, AuthOnly: true, Users: map[string]string{"relay": "secret"}})
			up := upstreamAt(server)
			up.TLS, up.Username, up.Password = upstream.TLSRequire, "relay", "secret"
			test.change(up)
			o := sendVia(t, up, Config{})
			if test.want == "" {
				if o.Result != queue.Deferred || o.Reply.Enhanced.Subject != 7 || server.Reached(smtptest.PhaseAuth) != 0 {
					t.Errorf("%s %v", o.Result, o.Reply)
				}
			} else if o.Result != queue.Delivered || !strings.HasSuffix(o.TLS, test.want) {
				t.Errorf("%s %v, %s", o.Result, o.Reply, o.TLS)
			}
		})
	}
}

// A mechanism that is set is the only one; one that was taken is the first over the next
// connection, though the server offers both.
func TestMechanismIsRemembered(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	for _, test := range []struct {
		mechanism string
		plain     int64 // so often it was tried
		login     bool  // was tried
		want      queue.Result
	}{{"", 1, true, queue.Delivered}, {"LOGIN", 0, true, queue.Delivered}, {"PLAIN", 1, false, queue.Deferred}} {
		var plain, login atomic.Int64
		noPlain := func(s smtptest.Session) smtptest.Action {
			if strings.HasPrefix(s.Command, "AUTH PLAIN") {
				plain.Add(1)
				return smtptest.Reply("504 5.5.4 not here")
			}
			login.Add(1)
			return smtptest.Normal()
		}
		server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Users: map[string]string{"relay": "secret"},
			Hooks: map[smtptest.Phase]smtptest.Hook{smtptest.PhaseAuth: noPlain}})
		up := upstreamAt(server)
		up.TLS, up.CA, up.Username, up.Password, up.Mechanism, up.MaxMessages = upstream.TLSRequire, string(ca.PEM()), "relay", "secret", test.mechanism, 1
		q := newFakeQueue()
		e := startEngine(t, q, Config{Routes: routes{def: up}})
		for n := 1; n <= 3; n++ {
			d := message(t, "user@one.test")
			e.Take(d)
			q.waitEnded(t, n)
			if o := q.outcome(t, d, 0); o.Result != test.want {
				t.Fatalf("%q: %s %v", test.mechanism, o.Result, o.Reply)
			}
		}
		if plain.Load() != test.plain || (login.Load() > 0) != test.login {
			t.Errorf("%q: PLAIN was tried %d times, LOGIN %d", test.mechanism, plain.Load(), login.Load())
		}
	}
}

// An idle connection is kept for the upstream's time, and one of former settings is let go
// without waiting for a message.
func TestIdleTimeOfAnUpstream(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	up := upstreamAt(server)
	up.IdleSeconds = 1
	q := newFakeQueue()
	e := startEngine(t, q, Config{Routes: routes{def: up}, IdleTime: time.Hour})
	e.Take(message(t, "user@one.test"))
	q.waitEnded(t, 1)
	server.WaitIdle(t)

	longer := *up
	longer.IdleSeconds = 3600
	q = newFakeQueue()
	e = startEngine(t, q, Config{Routes: routes{def: &longer}, IdleTime: time.Nanosecond})
	e.Take(message(t, "user@one.test"))
	q.waitEnded(t, 1)
	changed := longer
	changed.Hello = "new.test"
	d := e.known(queue.Way(longer.Name, ""))
	d.mu.Lock()
	d.update(&changed)
	d.mu.Unlock()
	server.WaitIdle(t)
	if n := server.Reached(smtptest.PhaseQuit); n != 2 {
		t.Errorf("%d farewells", n)
	}
}
