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

	"github.com/google/go-cmp/cmp"

	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// zone is the DNS of these tests.
func zone() *smtptest.Resolver {
	dns := &smtptest.Resolver{}
	dns.AddMX("one.test", 10, "mx.one.test.")
	dns.AddMX("order.test", 30, "third.order.test.")
	dns.AddMX("order.test", 10, "first.order.test.")
	dns.AddMX("order.test", 20, "second.order.test.")
	dns.AddMX("null.test", 0, ".")
	dns.AddMX("half-null.test", 0, ".")
	dns.AddMX("half-null.test", 10, "mx.half-null.test.")
	dns.AddMX("self.test", 10, "Relay.Test.")
	dns.AddMX("backup.test", 10, "main.backup.test.")
	dns.AddMX("backup.test", 20, "equal.backup.test.")
	dns.AddMX("backup.test", 20, "relay.test.")
	dns.AddMX("backup.test", 30, "worse.backup.test.")
	dns.ServFail("servfail.test")
	dns.TimeOut("timeout.test")
	for i := range 40 {
		dns.AddMX("many.test", uint16(i), fmt.Sprintf("mx%02d.many.test.", i))
	}
	return dns
}

func TestExchangers(t *testing.T) {
	t.Parallel()
	var first8 []string
	for i := range maxHosts {
		first8 = append(first8, fmt.Sprintf("mx%02d.many.test", i))
	}
	tests := []struct {
		domain    string
		hosts     []string
		code      int
		enhanced  string
		permanent bool
	}{
		{domain: "one.test", hosts: []string{"mx.one.test"}},
		{domain: "order.test", hosts: []string{"first.order.test", "second.order.test", "third.order.test"}},
		{domain: "no-mx.test", hosts: []string{"no-mx.test"}},
		{domain: "half-null.test", hosts: []string{"mx.half-null.test"}},
		{domain: "backup.test", hosts: []string{"main.backup.test"}},
		{domain: "many.test", hosts: first8},
		{domain: "null.test", code: 556, enhanced: "5.1.10", permanent: true},
		{domain: "self.test", code: 554, enhanced: "5.4.6", permanent: true},
		{domain: "servfail.test", code: 451, enhanced: "4.4.3"},
		{domain: "timeout.test", code: 451, enhanced: "4.4.3"},
		{domain: "[192.0.2.1]", code: 550, enhanced: "5.1.2", permanent: true},
		{domain: "[IPv6:2001:db8::1]", code: 550, enhanced: "5.1.2", permanent: true},
	}
	cfg := Config{DNS: zone(), Hello: "relay.test"}.withDefaults()
	d := newDialer(&cfg)
	for _, test := range tests {
		t.Run(test.domain, func(t *testing.T) {
			t.Parallel()
			list, trouble := d.exchangers(context.Background(), test.domain)
			if trouble != nil {
				if trouble.reply.Code != test.code || trouble.reply.Enhanced.String() != test.enhanced || trouble.permanent != test.permanent {
					t.Errorf("trouble %v (permanent: %v), want %d %s (%v)", trouble.reply, trouble.permanent, test.code, test.enhanced, test.permanent)
				}
				return
			}
			var hosts []string
			for _, x := range list {
				hosts = append(hosts, x.host)
			}
			if diff := cmp.Diff(test.hosts, hosts); diff != "" {
				t.Errorf("hosts: %s", diff)
			}
		})
	}
}

func TestEqualPreferencesAreShuffled(t *testing.T) {
	t.Parallel()
	first := map[string]bool{}
	for range 100 {
		list := []exchanger{{host: "worse", preference: 2}, {host: "a", preference: 1}, {host: "b", preference: 1}}
		order(list)
		first[list[0].host] = true
		if list[2].host != "worse" {
			t.Fatalf("order %v", list)
		}
	}
	if len(first) != 2 {
		t.Errorf("of two equals only %v is ever first", first)
	}
}

func TestInterleave(t *testing.T) {
	t.Parallel()
	var list []netip.Addr
	for _, s := range []string{"2a00::1", "2a00::2", "2a00::3", "2a00::4", "2a00::5", "8.8.8.8", "8.8.4.4"} {
		list = append(list, netip.MustParseAddr(s))
	}
	var got []string
	for _, a := range interleave(list, 5) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"2a00::1", "8.8.8.8", "2a00::2", "8.8.4.4", "2a00::3"}, got); diff != "" {
		t.Error(diff)
	}
	if n := len(interleave(nil, 5)); n != 0 {
		t.Errorf("%d of none", n)
	}
}

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
	cfg.AllowPrivateMX = true
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
	dns := &smtptest.Resolver{}
	dns.AddMX("one.test", 10, "mx1.one.test.")
	dns.AddMX("one.test", 20, "mx2.one.test.")
	dns.AddHost("mx1.one.test", "127.0.0.2")
	dns.AddHost("mx2.one.test", "127.0.0.3")
	o := deliver(t, Config{DNS: dns, MXPort: port}, "user@ONE.test")
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
	tests := map[string]func(*smtptest.Server, *smtptest.Resolver){
		"refuses connections": func(s *smtptest.Server, _ *smtptest.Resolver) { s.Close() },
		"554 greeting": func(s *smtptest.Server, _ *smtptest.Resolver) {
			s.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Reply("554 no service here")))
		},
		"421 greeting": func(s *smtptest.Server, _ *smtptest.Resolver) {
			s.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Then(smtptest.Reply("421 busy"), smtptest.Close())))
		},
		"closes at EHLO": func(s *smtptest.Server, _ *smtptest.Resolver) {
			s.On(smtptest.PhaseHello, smtptest.Always(smtptest.Close()))
		},
		"no address":       func(_ *smtptest.Server, dns *smtptest.Resolver) { dns.Forget("mx1.one.test") },
		"address SERVFAIL": func(_ *smtptest.Server, dns *smtptest.Resolver) { dns.ServFail("mx1.one.test") },
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			servers, port := hosts(t, 2)
			dns := &smtptest.Resolver{}
			dns.AddMX("one.test", 10, "mx1.one.test.")
			dns.AddMX("one.test", 20, "mx2.one.test.")
			dns.AddHost("mx1.one.test", "127.0.0.2")
			dns.AddHost("mx2.one.test", "127.0.0.3")
			spoil(servers[0], dns)
			o := deliver(t, Config{DNS: dns, MXPort: port}, "user@one.test")
			if o.Result != queue.Delivered || o.RemoteMTA != "mx2.one.test" {
				t.Errorf("outcome %+v, want delivered by the second host", o)
			}
		})
	}
}

// TestMXTrouble checks what no host at all means for the recipient.
func TestMXTrouble(t *testing.T) {
	t.Parallel()
	dns := zone()
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
			o := deliver(t, Config{DNS: dns, MXPort: port}, "user@"+domain)
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
	dns := &smtptest.Resolver{}
	dns.AddMX("name.test", 10, "relay.test.")
	dns.AddMX("address.test", 10, "other-name.test.")
	dns.AddHost("other-name.test", "127.0.0.1")
	dns.AddHost("no-mx.test", "127.0.0.1")
	any4 := netip.AddrPortFrom(netip.IPv4Unspecified(), addr.Port())
	for domain, listener := range map[string]netip.AddrPort{
		"name.test": addr, "address.test": addr, "no-mx.test": any4,
	} {
		o := deliver(t, Config{DNS: dns, MXPort: self.Port(), Self: []netip.AddrPort{listener}}, "user@"+domain)
		if o.Result != queue.Failed || o.Reply.Code != 554 || o.Reply.Enhanced != (smtp.EnhancedCode{Class: 5, Subject: 4, Detail: 6}) {
			t.Errorf("%s: %s %v, want failed 554 5.4.6", domain, o.Result, o.Reply)
		}
	}

	// An upstream is an administrator's mistake: the mail waits until it is mended.
	for _, host := range []string{"127.0.0.1", "::ffff:127.0.0.1", "other-name.test"} {
		up := upstreamAt(self)
		up.Host = host
		q := newFakeQueue()
		e := startEngine(t, q, Config{Routes: routes{def: up}, DNS: dns, Self: []netip.AddrPort{addr}})
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
	dns := stalledDNS{&smtptest.Resolver{}, make(chan struct{})}
	q := newFakeQueue()
	e := newEngine(q, Config{DNS: dns, Routes: routes{}, LookupTime: time.Hour})
	e.Start()
	d := message(t, "user@one.test")
	e.Take(d)
	<-dns.asked
	stop(t, e)
	if n := len(q.releases()[rowKey{d.Message.ID, 0}]); n != 1 {
		t.Errorf("released %d times", n)
	}
	dropped(t, d)
}

type stalledDNS struct {
	*smtptest.Resolver
	asked chan struct{}
}

func (s stalledDNS) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	close(s.asked)
	<-ctx.Done()
	return nil, &net.DNSError{Err: "i/o timeout", Name: name, IsTimeout: true}
}

// An upstream of one label is looked up as the machine knows it, in its hosts file and by
// its search list; a longer name, and one with a final dot, is a name of DNS.
func TestUpstreamQuery(t *testing.T) {
	t.Parallel()
	for host, want := range map[string]string{"mailpit": "mailpit", "mailpit.": "mailpit.", "smtp.example.net": "smtp.example.net."} {
		dns := &askedDNS{asked: make(chan string, 2)}
		d := &dialer{cfg: &Config{DNS: dns, LookupTime: time.Minute}}
		if _, trouble := d.open(t.Context(), "", need{upstream: &upstream.Account{Name: "out", Host: host, Port: 25, TLS: upstream.TLSNone}}, &worker{}); trouble == nil {
			t.Errorf("%s: no trouble", host)
		}
		for range 2 {
			if got := <-dns.asked; got != want {
				t.Errorf("%s is looked up as %q, want %q", host, got, want)
			}
		}
	}
}

type askedDNS struct {
	smtptest.Resolver
	asked chan string
}

func (a *askedDNS) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	a.asked <- host
	return a.Resolver.LookupNetIP(ctx, network, host)
}

// strictResolver fails the test when it is asked about anything but the names that it has.
type strictResolver struct {
	*smtptest.Resolver
	t *testing.T
}

func (r strictResolver) check(name string) {
	if isOutsideDNS(strings.TrimSuffix(name, ".")) {
		r.t.Errorf("DNS is asked about %s", name)
	}
}

func (r strictResolver) LookupMX(ctx context.Context, name string) ([]*net.MX, error) {
	r.check(name)
	return r.Resolver.LookupMX(ctx, name)
}

func (r strictResolver) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	r.check(host)
	return r.Resolver.LookupNetIP(ctx, network, host)
}

// TestRFC7686SpecialUse: names below .onion and .invalid never reach the DNS, be they a
// domain, an MX or an upstream. Mail to them fails immediately, unless a route sends it to
// an upstream; that of an upstream waits for its admin.
func TestRFC7686SpecialUse(t *testing.T) {
	t.Parallel()
	server, dns := smtptest.Start(t, smtptest.Config{}), &smtptest.Resolver{}
	dns.AddMX("half.test", 10, "abc.onion.")
	dns.AddMX("whole.test", 10, "ABC.Onion.")
	dns.AddMX("whole.test", 20, "mx.whole.test.")
	dns.AddHost("mx.whole.test", server.Host())
	cfg := Config{DNS: strictResolver{dns, t}, MXPort: server.Port(), AllowPrivateMX: true}
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
