package check

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/foxcpp/go-mockdns"

	"postern/cmd/postern/config"
	"postern/internal/smtptest"
	"postern/relay/upstream"
)

// zone replaces what DNS knows of a name; the empty one knows nothing.
func zone(name string, z mockdns.Zone) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { p.zones[name] = z }
}

// dnsDown is an answer that says nothing about the name.
var dnsDown = &net.DNSError{Err: "server misbehaving", IsTemporary: true}

func allByUpstream(_ *testing.T, p *patient) {
	p.upstream(upstream.Account{Host: "127.0.0.1", Port: 25, TLS: upstream.TLSNone})
}

func dnsFaults() []fault {
	return []fault{
		{"dns.hostname", patientAddress, nothing},
		{"dns.ptr", "its name is relay.test", nothing},
		{"dns.resolver", "server misbehaving", zone("relay.test.", mockdns.Zone{Err: dnsDown})},
		{"dns.resolver", "asked for its name", zone(patientPTR, mockdns.Zone{Err: dnsDown})},
		{"dns.hostname-none", "relay.test has no address", zone("relay.test.", mockdns.Zone{})},
		{"dns.address-unknown", "10.0.0.1", zone("relay.test.", mockdns.Zone{A: []string{"10.0.0.1"}})},
		{"dns.ptr-none", "no PTR", zone(patientPTR, mockdns.Zone{})},
		{"dns.ptr-none", "no PTR", func(_ *testing.T, p *patient) { p.c.opts.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.9")} }},
		{"dns.ptr-forward", "host7.isp.test., which is not at", zone(patientPTR, mockdns.Zone{PTR: []string{"host7.isp.test."}})},
		{"dns.ptr-other", "mail.test, and the hostname is relay.test", func(_ *testing.T, p *patient) {
			p.zones[patientPTR] = mockdns.Zone{PTR: []string{"mail.test."}}
			p.zones["mail.test."] = mockdns.Zone{A: []string{patientAddress}}
		}},
		{"dns.ptr-unused", "not checked: all mail leaves through upstreams", allByUpstream},
	}
}

// halfDeaf gives no answer to one question about a name, and knows nothing else of it.
type halfDeaf struct {
	resolver
	kind, name string
}

var dnsRefused = &net.DNSError{Err: "server misbehaving", Server: "127.0.0.1:53"}

func (h halfDeaf) LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error) {
	switch {
	case host != h.name:
		return h.resolver.LookupNetIP(ctx, network, host)
	case network == h.kind:
		return nil, dnsRefused
	}
	return nil, &net.DNSError{Err: "no such host", Server: "127.0.0.1:53", IsNotFound: true}
}

func (h halfDeaf) LookupTXT(ctx context.Context, name string) ([]string, error) {
	if h.kind == "TXT" && name == h.name {
		return nil, dnsRefused
	}
	return h.resolver.LookupTXT(ctx, name)
}

// TestP04CheckJudgesOneByOne: what no server says is not told as a fault of the name.
func TestP04CheckJudgesOneByOne(t *testing.T) {
	t.Parallel()
	for _, family := range []string{"ip4", "ip6"} {
		p := newPatient(t)
		viewed(t, p)
		p.c.dns = halfDeaf{p.c.dns, family, "relay.test."}
		found := p.look(t.Context(), "dns")
		wantFinding(t, found, "dns.resolver", "asked for relay.test")
		wantNone(t, found, "dns.hostname-none")
		if !config.Resolver("").PreferGo {
			t.Error("the C library is asked")
		}
	}
	p := newPatient(t)
	viewed(t, p)
	p.zones["example.com."] = mockdns.Zone{TXT: []string{"v=spf1 a:host.example.com -all"}, MX: []net.MX{{Host: "mx.example.com."}}}
	for _, deaf := range []halfDeaf{{p.c.dns, "TXT", "example.com."}, {p.c.dns, "ip4", "host.example.com."}} {
		p.c.dns = deaf
		found := p.look(t.Context(), "spf")
		wantFinding(t, found, "spf.unknown", "misbehaving")
		wantNone(t, found, "spf.broken")
		p = p.again()
		viewed(t, p)
	}
}

func TestCheckFindsFaultsOfDNS(t *testing.T) {
	t.Parallel()
	find(t, dnsFaults(), "dns", viewed)
}

func spfFaults() []fault {
	record := func(text string) func(*testing.T, *patient) {
		return func(_ *testing.T, p *patient) {
			z := p.zones["example.com."]
			z.TXT = []string{text}
			p.zones["example.com."] = z
		}
	}
	return []fault{
		{"spf.ok", patientAddress, nothing},
		{"spf.none", "no record", record("something else")},
		{"spf.fail", "198.51.100.7: fail", record("v=spf1 ip4:192.0.2.0/24 -all")},
		{"spf.fail", "198.51.100.7: softfail", record("v=spf1 ip4:192.0.2.0/24 ~all")},
		{"spf.fail", "203.0.113.9: fail", func(_ *testing.T, p *patient) { p.c.opts.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.9")} }},
		{"spf.broken", "", record("v=spf1 ip4:nonsense -all")},
		{"spf.unknown", "misbehaving", zone("example.com.", mockdns.Zone{Err: dnsDown})},
		{"spf.upstream", "v=spf1 ip4:198.51.100.0/24 -all", allByUpstream},
		{"spf.no-address", "example.com", zone("relay.test.", mockdns.Zone{A: []string{"10.0.0.1"}})},
		{"spf.more", "20 of 31", func(t *testing.T, p *patient) {
			for n := range 30 {
				withUser(fmt.Sprintf("u%d", n), fmt.Sprintf("*@d%d.test", n), "*@*.example.com")(t, p)
			}
		}},
		{"dmarc.ok", "v=DMARC1", nothing},
		{"dmarc.ok", "p=reject", func(t *testing.T, p *patient) { // the organization's
			withUser("bob@deep.example.com")(t, p)
			p.zones["_dmarc.example.com."] = mockdns.Zone{TXT: []string{"v=DMARC1; p=reject"}}
		}},
		{"dmarc.none", "_dmarc.example.com", zone("_dmarc.example.com.", mockdns.Zone{})},
		{"sender.no-mail", "null MX", func(_ *testing.T, p *patient) {
			z := p.zones["example.com."]
			z.MX = []net.MX{{Host: "."}}
			p.zones["example.com."] = z
		}},
		{"sender.no-mail", "neither", withUser("bob@gone.test")},
	}
}

func TestCheckFindsFaultsOfSenderDomains(t *testing.T) {
	t.Parallel()
	find(t, spfFaults(), "spf", viewed)
}

// A domain without a record is told once, however many addresses mail leaves from.
func TestCheckTellsAMissingRecordOnce(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	viewed(t, p)
	p.zones["example.com."] = mockdns.Zone{A: []string{patientAddress}}
	p.c.opts.Addresses = []netip.Addr{netip.MustParseAddr(patientAddress), netip.MustParseAddr("2001:db8::7")}
	told := 0
	for _, f := range p.look(t.Context(), "spf") {
		if f.ID == "spf.none" {
			told++
		}
	}
	if told != 1 {
		t.Errorf("told %d times", told)
	}
}

// hosted gives there.test one mail host at an address.
func hosted(address string) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) {
		p.zones["there.test."] = mailedTo("mx.there.test.")
		p.zones["mx.there.test."] = mockdns.Zone{A: []string{address}}
	}
}

func mailedTo(host string) mockdns.Zone { return mockdns.Zone{MX: []net.MX{{Host: host, Pref: 10}}} }

// served gives it a server as well.
func served(cfg smtptest.Config) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		hosted("127.0.0.1")(t, p)
		p.c.cfg.Delivery.AllowPrivateMX, p.c.cfg.Delivery.MXPort = true, smtptest.Start(t, cfg).Port()
	}
}

func mxFaults() []fault {
	mail := func(z mockdns.Zone) func(*testing.T, *patient) { return zone("there.test.", z) }
	return []fault{
		{"mx.ok", "mx.there.test (127.0.0.1) answers, in clear", served(smtptest.Config{})},
		{"mx.null", "RFC 7505", mail(mailedTo("."))},
		{"mx.null", "RFC 7505", func(_ *testing.T, p *patient) {
			p.zones["there.test."] = mockdns.Zone{MX: []net.MX{{Host: "."}, {Host: "."}}}
		}},
		{"mx.address", `"192.0.2.1."`, mail(mailedTo("192.0.2.1."))},
		{"mx.null", "no such host", func(_ *testing.T, p *patient) { delete(p.zones, "there.test.") }},
		{"mx.lookup", "misbehaving", mail(mockdns.Zone{Err: dnsDown})},
		{"mx.address", "private or special address", func(t *testing.T, p *patient) {
			hosted("192.168.1.1")(t, p)
			p.c.cfg.Delivery.AllowPrivateMX = false
		}},
		{"mx.address", "no such host", mail(mailedTo("gone.there.test."))},
		{"mx.unreachable", "refused", func(t *testing.T, p *patient) {
			hosted("127.0.0.1")(t, p)
			p.c.cfg.Delivery.MXPort = int(netip.MustParseAddrPort(closedPort(t)).Port())
		}},
		{"mx.refuses", "554 5.7.1 listed", served(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseBanner: smtptest.Always(smtptest.Reply("554 5.7.1 listed"))}})},
		{"mx.self", "loops back", mail(mailedTo("relay.test."))},
	}
}

func TestCheckFindsFaultsOfMailHosts(t *testing.T) {
	t.Parallel()
	find(t, mxFaults(), "mx", func(t *testing.T, p *patient) {
		p.c.opts.MX = []string{"there.test"}
		served(smtptest.Config{})(t, p)
	})
}
