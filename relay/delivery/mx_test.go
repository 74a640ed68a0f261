package delivery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// hosts starts servers on one port of 127.0.0.2, 127.0.0.3, …
func hosts(t *testing.T, n int) (list []*smtptest.Server, port int) {
	t.Helper()
	list = append(list, smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0"}))
	port = list[0].Port()
	for i := 1; i < n; i++ {
		list = append(list, smtptest.Start(t, smtptest.Config{Addr: net.JoinHostPort(fmt.Sprintf("127.0.0.%d", i+2), strconv.Itoa(port))}))
	}
	return list, port
}

// deliver sends one message to MX and returns its outcome.
func deliver(t *testing.T, cfg Config, rcpt string) queue.Outcome {
	t.Helper()
	cfg.Routes = routes{}
	return attempt(t, cfg, message(t, rcpt))
}

// attempt sends a message to its one recipient and returns the outcome.
func attempt(t *testing.T, cfg Config, d *queue.Delivery) queue.Outcome {
	t.Helper()
	q := newFakeQueue()
	cfg.Connect.AllowPrivateMX = true
	e := startEngine(t, q, cfg)
	e.Take(d)
	q.waitEnded(t, 1)
	o := q.outcome(t, d, 0)
	stop(t, e)
	dropped(t, d)
	return o
}

func TestMXDelivers(t *testing.T) {
	t.Parallel()
	servers, port := hosts(t, 2)
	dns := &dnstest.Zones{}
	dns.AddMX("one.test", 10, "mx1.one.test.")
	dns.AddMX("one.test", 20, "mx2.one.test.")
	dns.AddHost("mx1.one.test", "127.0.0.2")
	dns.AddHost("mx2.one.test", "127.0.0.3")
	o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: port}}, "user@ONE.test")
	if o.Result != queue.Delivered || o.RemoteMTA != "mx1.one.test" || o.Upstream != "mx" {
		t.Errorf("outcome %+v", o)
	}
	if got := servers[0].Messages(); len(got) != 1 || got[0].To()[0] != "user@ONE.test" || got[0].Hello != "relay.test" {
		t.Errorf("messages %+v", got)
	}
}

// TestMXFallsBack walks the ways in which the first host can be of no use.
func TestMXFallsBack(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*smtptest.Server, *dnstest.Zones){
		"refuses connections": func(s *smtptest.Server, _ *dnstest.Zones) { s.Close() },
		"554 greeting": func(s *smtptest.Server, _ *dnstest.Zones) {
			s.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Reply("554 no service here")))
		},
		"421 greeting": func(s *smtptest.Server, _ *dnstest.Zones) {
			s.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Then(smtptest.Reply("421 busy"), smtptest.Close())))
		},
		"closes at EHLO": func(s *smtptest.Server, _ *dnstest.Zones) {
			s.On(smtptest.PhaseHello, smtptest.Always(smtptest.Close()))
		},
		"no address":       func(_ *smtptest.Server, dns *dnstest.Zones) { dns.Forget("mx1.one.test") },
		"address SERVFAIL": func(_ *smtptest.Server, dns *dnstest.Zones) { dns.ServFail("mx1.one.test") },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers, port := hosts(t, 2)
			dns := &dnstest.Zones{}
			dns.AddMX("one.test", 10, "mx1.one.test.")
			dns.AddMX("one.test", 20, "mx2.one.test.")
			dns.AddHost("mx1.one.test", "127.0.0.2")
			dns.AddHost("mx2.one.test", "127.0.0.3")
			spoil(servers[0], dns)
			o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: port}}, "user@one.test")
			if o.Result != queue.Delivered || o.RemoteMTA != "mx2.one.test" {
				t.Errorf("outcome %+v, want delivered by the second host", o)
			}
		})
	}
}

// TestMXTrouble checks what no host at all means for the recipient.
func TestMXTrouble(t *testing.T) {
	t.Parallel()
	dns := dnstest.MailHosts()
	dns.AddMX("no-address.test", 10, "mx.no-address.test.")
	dns.AddMX("half.test", 10, "mx1.half.test.")
	dns.AddMX("half.test", 20, "mx2.half.test.")
	dns.ServFail("mx2.half.test")
	dns.AddMX("closed.test", 10, "mx.closed.test.")
	dns.AddHost("mx.closed.test", "127.0.0.9")
	closed := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.9:0"})
	port := closed.Port()
	closed.Close()
	tests := map[string]struct {
		result queue.Result
		code   int
		status string
	}{
		"null.test":       {queue.Failed, 556, "5.1.10"},
		"no-such.test":    {queue.Failed, 550, "5.1.2"},
		"no-address.test": {queue.Failed, 550, "5.4.4"},
		"self.test":       {queue.Failed, 554, "5.4.6"},
		"half.test":       {queue.Deferred, 451, "4.4.3"},
		"servfail.test":   {queue.Deferred, 451, "4.4.3"},
		"timeout.test":    {queue.Deferred, 451, "4.4.3"},
		"closed.test":     {queue.Deferred, 451, "4.4.1"},
		"[127.0.0.9]":     {queue.Failed, 550, "5.1.2"},
	}
	for domain, want := range tests {
		t.Run(domain, func(t *testing.T) {
			t.Parallel()
			o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: port}}, "user@"+domain)
			if o.Result != want.result || o.Reply.Code != want.code || o.Reply.Enhanced.String() != want.status {
				t.Errorf("%s %v, want %s %d %s", o.Result, o.Reply, want.result, want.code, want.status)
			}
			if (o.Result == queue.Deferred) != (o.RetryIn > 0) {
				t.Errorf("%s with a retry in %v", o.Result, o.RetryIn)
			}
		})
	}
}

// TestA19Self has mail that would come back to this server.
func TestA19Self(t *testing.T) {
	t.Parallel()
	self := smtptest.Start(t, smtptest.Config{})
	addr := netip.MustParseAddrPort(self.Addr())
	dns := &dnstest.Zones{}
	dns.AddMX("name.test", 10, "relay.test.")
	dns.AddMX("address.test", 10, "other-name.test.")
	dns.AddHost("other-name.test", "127.0.0.1")
	dns.AddHost("no-mx.test", "127.0.0.1")
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	for domain, listener := range map[string]netip.AddrPort{
		"name.test": addr, "address.test": addr, "no-mx.test": any4,
	} {
		o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: self.Port(), Self: []netip.AddrPort{listener}}}, "user@"+domain)
		if o.Result != queue.Failed || o.Reply.Code != 554 || o.Reply.Enhanced != (smtp.EnhancedCode{Class: 5, Subject: 4, Detail: 6}) {
			t.Errorf("%s: %s %v, want failed 554 5.4.6", domain, o.Result, o.Reply)
		}
	}

	// An upstream is an administrator's mistake: the mail waits until it is mended.
	for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1", "other-name.test"} {
		up := upstreamAt(self)
		up.Host = host
		q := newFakeQueue()
		e := startEngine(t, q, Config{Connect: connect.Config{DNS: dns.Resolver(), Self: []netip.AddrPort{addr}}, Routes: routes{def: up}})
		d := message(t, "user@one.test")
		e.Take(d)
		q.waitEnded(t, 1)
		if o := q.outcome(t, d, 0); o.Result != queue.Deferred || o.Reply.Enhanced != (smtp.EnhancedCode{Class: 4, Subject: 4, Detail: 6}) {
			t.Errorf("upstream %s: %s %v, want deferred 4.4.6", host, o.Result, o.Reply)
		}
	}
	if n := self.Conns(); n != 0 {
		t.Errorf("%d connections to itself", n)
	}
}

// TestStalledDNS has a resolver that answers nothing: Shutdown does not wait for it.
func TestStalledDNS(t *testing.T) {
	t.Parallel()
	asked := make(chan struct{})
	silent := dnstest.By(func(ctx context.Context, _ string, _ *dns.Msg) (*dns.Msg, error) {
		close(asked)
		<-ctx.Done()
		return nil, ctx.Err()
	})
	q := newFakeQueue()
	e := newEngine(q, Config{Connect: connect.Config{DNS: silent, LookupTime: time.Hour}, Routes: routes{}})
	e.Start()
	d := message(t, "user@one.test")
	e.Take(d)
	<-asked
	stop(t, e)
	if n := len(q.releases()[rowKey{d.Message.ID, 0}]); n != 1 {
		t.Errorf("released %d times", n)
	}
	dropped(t, d)
}

// TestRFC7686SpecialUse: names below .onion and .invalid never reach the DNS, be they a
// domain, an MX or an upstream. Mail to them fails immediately, unless a route sends it to
// an upstream; that of an upstream waits for its admin.
func TestRFC7686SpecialUse(t *testing.T) {
	t.Parallel()
	server, zones := smtptest.Start(t, smtptest.Config{}), &dnstest.Zones{}
	zones.AddMX("half.test", 10, "abc.onion.")
	zones.AddMX("whole.test", 10, "ABC.Onion.")
	zones.AddMX("whole.test", 20, "mx.whole.test.")
	zones.AddHost("mx.whole.test", server.Host())
	strict := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		if name := dns.CanonicalName(query.Question[0].Name); strings.HasSuffix(name, ".onion.") || strings.HasSuffix(name, ".invalid.") {
			t.Errorf("DNS is asked about %s", name)
		}
		return zones.Exchange(ctx, server, query)
	})
	cfg := Config{Connect: connect.Config{DNS: strict, MXPort: server.Port(), AllowPrivateMX: true}}
	onion := &upstream.Account{Name: "tor", Host: "smtp.abc.onion", Port: 25, TLS: upstream.TLSNone}
	for _, test := range []struct {
		to     string
		via    *upstream.Account
		result queue.Result
		reply  string
	}{
		{"a@abc.onion", nil, queue.Failed, "550 5.1.2 "},
		{"a@x.ABC.Onion", nil, queue.Failed, "550 5.1.2 "},
		{"a@one.invalid", nil, queue.Failed, "550 5.1.2 "},
		{"a@half.test", nil, queue.Failed, "550 5.4.4 "},
		{"a@whole.test", nil, queue.Delivered, "250 "},
		{"a@abc.onion", upstreamAt(server), queue.Delivered, "250 "},
		{"a@one.test", onion, queue.Deferred, "451 4.4.3 smtp.abc.onion: names below .onion"},
	} {
		cfg.Routes = routes{def: test.via}
		if o := attempt(t, cfg, message(t, test.to)); o.Result != test.result || !strings.HasPrefix(o.Reply.String(), test.reply) {
			t.Errorf("%s: %s %v, want %s %s", test.to, o.Result, o.Reply, test.result, test.reply)
		}
	}
}
