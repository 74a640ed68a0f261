package delivery

import (
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/connect"
	"postern/relay/queue"
)

// TestP04Deliveries takes the same cases to the end, for an MX host, a domain without
// MX, and an upstream, whose mail always waits.
func TestP04Deliveries(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0"})
	for _, test := range dnstest.LookupCases {
		if strings.Contains(test.AAAA, ":") && test.A != "127.0.0.2" {
			continue // IPv6 may not be had here
		}
		t.Run(test.Name, func(t *testing.T) {
			t.Parallel()
			var dns dnstest.Zones
			dns.AddMX("one.test", 10, "host.test.")
			dns.Plant("host.test", test.A, test.AAAA)
			want := map[string]queue.Result{"used": queue.Delivered, "none": queue.Failed, "unknown": queue.Deferred}[test.Want]
			for domain, status := range map[string]string{"one.test": "5.4.4", "host.test": "5.1.2"} {
				o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver(), MXPort: server.Port()}}, "user@"+domain)
				if o.Result != want || want == queue.Failed && o.Reply.Enhanced.String() != status || want == queue.Deferred && o.Reply.Enhanced.String() != "4.4.3" {
					t.Errorf("%s: %s %v, want %s", domain, o.Result, o.Reply, want)
				}
			}
			up := upstreamAt(server)
			up.Host = "host.test"
			if want == queue.Failed {
				want = queue.Deferred
			}
			if o := sendVia(t, up, Config{Connect: connect.Config{DNS: dns.Resolver()}}); o.Result != want {
				t.Errorf("upstream: %s %v, want %s", o.Result, o.Reply, want)
			}
		})
	}
}

// TestP04MX has nothing read as "no MX" but that.
func TestP04MX(t *testing.T) {
	t.Parallel()
	for fault, plant := range map[string]func(*dnstest.Zones, string, ...string){
		"servfail": (*dnstest.Zones).ServFail,
		"refused":  (*dnstest.Zones).Refuse,
		"timeout":  (*dnstest.Zones).TimeOut,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			var dns dnstest.Zones
			dns.AddHost("one.test", "127.0.0.2")
			plant(&dns, "one.test", "MX")
			o := deliver(t, Config{Connect: connect.Config{DNS: dns.Resolver()}}, "user@one.test")
			if o.Result != queue.Deferred || o.Reply.Enhanced.String() != "4.4.3" {
				t.Errorf("%s %v", o.Result, o.Reply)
			}
			if n := dns.Queries("A", "one.test"); n != 0 {
				t.Errorf("the domain itself was taken for its mail host %d times", n)
			}
		})
	}
}

// Aliases in a circle are a mistake that is being made, not a name that is not there; an
// alias of nothing is.
func TestL2AliasesInACircle(t *testing.T) {
	t.Parallel()
	var dns dnstest.Zones
	dns.AddCNAME("circle.test", "b.circle.test")
	dns.AddCNAME("b.circle.test", "circle.test")
	dns.AddMX("mx.test", 10, "circle.test.")
	dns.AddCNAME("dangling.test", "none.test")
	for by, asked := range dns.Both(t) {
		for domain, want := range map[string]queue.Result{
			"circle.test": queue.Deferred, "mx.test": queue.Deferred, "dangling.test": queue.Failed,
		} {
			o := deliver(t, Config{Connect: connect.Config{DNS: asked}}, "user@"+domain)
			if o.Result != want || (want == queue.Deferred) != strings.Contains(o.Reply.Text, "CNAME") {
				t.Errorf("%s, %s: %s %v, want %s", by, domain, o.Result, o.Reply, want)
			}
		}
	}
}

// Nobody listens where questions go.
func TestP04NoNameServer(t *testing.T) {
	t.Parallel()
	closed := smtptest.Start(t, smtptest.Config{})
	addr := closed.Addr()
	closed.Close()
	if o := deliver(t, Config{Connect: connect.Config{DNS: dnstest.At(addr)}}, "user@one.test"); o.Result != queue.Deferred || o.Reply.Enhanced.String() != "4.4.3" {
		t.Errorf("%s %v", o.Result, o.Reply)
	}
}

// TestImpossibleMX: an MX that cannot be a host is ignored, and a domain with no other fails.
func TestImpossibleMX(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0"})
	for name, test := range map[string]struct {
		mx     []string
		reply  string // that fails the mail; "" when it is delivered
		quotes string
	}{
		"address":                {[]string{"192.0.2.1."}, "550 5.4.4", `"192.0.2.1."`},
		"illegal":                {[]string{"a b.test."}, "550 5.4.4", "b.test."},
		"addresses and illegal":  {[]string{"-.test.", "192.0.2.1."}, "550 5.4.4", ""},
		"null and address":       {[]string{".", "192.0.2.1."}, "550 5.4.4", ""},
		"null twice":             {[]string{".", "."}, "556 5.1.10", "null MX"},
		"null":                   {[]string{"."}, "556 5.1.10", "null MX"},
		"null beside a host":     {[]string{".", "mx.one.test."}, "", ""},
		"address beside a host":  {[]string{"192.0.2.1.", "mx.one.test."}, "", ""},
		"illegal beside a host":  {[]string{"a b.test.", "mx.one.test."}, "", ""},
		"null twice with a host": {[]string{".", "mx.one.test.", "."}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dns dnstest.Zones
			for i, host := range test.mx {
				dns.AddMX("one.test", uint16(i), host)
			}
			dns.AddHost("mx.one.test", "127.0.0.2")
			for by, asked := range dns.Both(t) {
				o := deliver(t, Config{Connect: connect.Config{DNS: asked, MXPort: server.Port()}}, "user@one.test")
				if test.reply == "" && o.Result != queue.Delivered {
					t.Errorf("%s: %s %v, want delivered", by, o.Result, o.Reply)
				}
				if test.reply != "" && (o.Result != queue.Failed || !strings.HasPrefix(o.Reply.String(), test.reply+" ") || !strings.Contains(o.Reply.Text, test.quotes)) {
					t.Errorf("%s: %s %v, want failed by %s with %s", by, o.Result, o.Reply, test.reply, test.quotes)
				}
			}
		})
	}
}
