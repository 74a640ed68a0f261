package check

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"postern/admin/health"
	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/dkim/keys"
	"postern/relay/resolver"
	"postern/relay/transport"
	"postern/relay/upstream"
)

// says has DNS know nothing of a name but these records.
func says(name string, records ...string) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { p.dns.Set(name, records...) }
}

// broken has DNS say nothing about a name.
func broken(name string) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { p.dns.ServFail(name) }
}

func allByUpstream(_ *testing.T, p *patient) {
	p.upstream(upstream.Account{Host: "127.0.0.1", Port: 25, TLS: upstream.TLSNone})
}

func dnsFaults() []fault {
	return []fault{
		{"dns.hostname", patientAddress, nothing},
		{"dns.dnssec", "it validates DNSSEC", nothing},
		{"dns.dnssec-off", "it does not validate DNSSEC (it does not say that it has validated the root zone", func(_ *testing.T, p *patient) { p.dns.Sign() }},
		{"dns.dnssec-off", "whose signatures are wrong", func(_ *testing.T, p *patient) { p.dns.Blind() }},
		{"dns.dnssec-untrusted", "not on this machine", func(_ *testing.T, p *patient) {
			p.c.dns = resolver.New(resolver.Config{Servers: []string{"192.0.2.53:53"}, Exchange: p.dns.Exchange})
		}},
		{"dns.dnssec-mixed", "not on this machine", func(_ *testing.T, p *patient) {
			p.c.dns = resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53", "192.0.2.53:53"}, Exchange: p.dns.Exchange})
		}},
		{"dns.server", "one.test:53 is away", func(_ *testing.T, p *patient) {
			exchange := p.dns.Exchange
			p.c.dns = resolver.New(resolver.Config{Servers: []string{"127.0.0.1:54", "127.0.0.1:53"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
				if server == "127.0.0.1:54" {
					return nil, errors.New("one.test:53 is away")
				}
				return exchange(ctx, server, query)
			}})
		}},
		{"dns.ptr", "its name is relay.test", nothing},
		{"dns.resolver", "SERVFAIL", broken("relay.test.")},
		{"dns.resolver", "asked for its name", broken(patientPTR)},
		{"dns.hostname-none", "relay.test has no address", says("relay.test.")},
		{"dns.address-unknown", "10.0.0.1", says("relay.test.", "A 10.0.0.1")},
		{"dns.ptr-none", "no PTR", says(patientPTR)},
		{"dns.ptr-none", "no PTR", func(_ *testing.T, p *patient) { p.c.opts.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.9")} }},
		{"dns.ptr-forward", "host7.isp.test., which is not at", says(patientPTR, "PTR host7.isp.test.")},
		{"dns.ptr-other", "mail.test, and the hostname is relay.test", func(_ *testing.T, p *patient) {
			p.dns.Set(patientPTR, "PTR mail.test.")
			p.dns.Set("mail.test.", "A "+patientAddress)
		}},
		{"dns.ptr-unused", "not checked: all mail leaves through upstreams", allByUpstream},
	}
}

// TestP04CheckJudgesOneByOne: what no server says is not told as a fault of the name.
func TestP04CheckJudgesOneByOne(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"A", "AAAA"} {
		p := newPatient(t)
		viewed(t, p)
		p.dns.Set("relay.test.")
		p.dns.Refuse("relay.test.", kind)
		found := p.look(t.Context(), "dns")
		wantFinding(t, found, "dns.resolver", "asked for relay.test")
		wantNone(t, found, "dns.hostname-none")
	}
	p := newPatient(t)
	viewed(t, p)
	p.dns.Set("example.com.", `TXT "v=spf1 a:host.example.com -all"`, "MX 10 mx.example.com.")
	for name, kind := range map[string]string{"example.com.": "TXT", "host.example.com.": "A"} {
		p.dns.Refuse(name, kind)
		found := p.look(t.Context(), "spf")
		wantFinding(t, found, "spf.unknown", "REFUSED")
		wantNone(t, found, "spf.broken")
		p.dns.Mend(name)
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
		return says("example.com.", `TXT "`+text+`"`, "MX 10 mx.example.com.")
	}
	return []fault{
		{"spf.ok", patientAddress, nothing},
		{"spf.none", "no SPF record", record("something else")},
		{"spf.fail", "SPF: fail for 198.51.100.7 (it matches only \"all\")", record("v=spf1 ip4:192.0.2.0/24 -all")},
		{"spf.fail", "SPF: softfail for 198.51.100.7", record("v=spf1 ip4:192.0.2.0/24 ~all")},
		{"spf.fail", "SPF: fail for 203.0.113.9", func(_ *testing.T, p *patient) { p.c.opts.Addresses = []netip.Addr{netip.MustParseAddr("203.0.113.9")} }},
		{"spf.broken", "an ip4 or ip6 term has no valid address", record("v=spf1 ip4:nonsense -all")},
		{"spf.unknown", "SPF: name server", broken("example.com.")},
		{"spf.upstream", "v=spf1 ip4:198.51.100.0/24 -all", allByUpstream},
		{"spf.no-address", "example.com", says("relay.test.", "A 10.0.0.1")},
		{"spf.more", "20 of 31", func(t *testing.T, p *patient) {
			for n := range 30 {
				withUser(fmt.Sprintf("u%d", n), fmt.Sprintf("*@d%d.test", n), "*@*.example.com")(t, p)
			}
		}},
		{"dmarc.ok", "DMARC passes by SPF; its policy is none", nothing},
		{"dmarc.ok", "its policy is reject", func(t *testing.T, p *patient) { // the organization's
			withUser("bob@deep.example.com")(t, p)
			p.dns.Set("deep.example.com.", `TXT "v=spf1 ip4:198.51.100.7 -all"`)
			p.dns.Set("_dmarc.example.com.", `TXT "v=DMARC1; p=reject"`)
		}},
		{"dmarc.unknown", "DMARC: name server", broken("_dmarc.example.com.")},
		{"sender.unknown", "MX: name server", func(_ *testing.T, p *patient) { p.dns.ServFail("example.com.", "MX") }},
		{"dmarc.fail", "DMARC fails: mail is not signed; SPF of example.com: fail; its policy is none", record("v=spf1 ip4:192.0.2.0/24 -all")},
		{"dmarc.fail", "SPF of example.com: none", record("no SPF")},
		{"dmarc.none", "_dmarc.example.com", says("_dmarc.example.com.")},
		{"sender.no-mail", "null MX", says("example.com.", "MX 0 .")},
		{"sender.no-mail", "neither", withUser("bob@gone.test")},
	}
}

func TestCheckFindsFaultsOfSenderDomains(t *testing.T) {
	t.Parallel()
	find(t, spfFaults(), "spf", viewed)
}

// The record that helps is one to publish.
func TestCheckHasRecordsToPublish(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	signed(t, p)
	p.view.dkim[0].State = keys.Pending
	p.dkimServer(func(z *dnstest.Zones) { z.Forget("s1._domainkey.example.com") })
	p.dns.Set("example.com.", "MX 10 mx.example.com.")
	p.dns.Forget("_dmarc.example.com")
	p.dns.Forget(patientPTR)
	want := map[string]string{
		"spf.none":     `example.com. IN TXT ( "v=spf1 mx ip4:198.51.100.7 ~all" )`,
		"dmarc.none":   `_dmarc.example.com. IN TXT ( "v=DMARC1; p=none; rua=mailto:postmaster@example.com" )`,
		"dkim.pending": p.view.dkim[0].Zone(),
		"dns.ptr-none": patientPTR + " IN PTR relay.test.",
	}
	wantEach(t, p.look(t.Context(), "dns", "spf", "dkim"), want, func(f health.Finding, record string) bool { return f.Publish == record })
}

// wantEach wants findings of these kinds, and that all fit what is wanted of theirs, "" of others.
func wantEach(t *testing.T, found []health.Finding, want map[string]string, fits func(f health.Finding, want string) bool) {
	t.Helper()
	for _, f := range found {
		if !fits(f, want[f.ID]) {
			t.Errorf("%+v, want %q", f, want[f.ID])
		}
		delete(want, f.ID)
	}
	if len(want) > 0 {
		t.Errorf("not found: %v", want)
	}
}

// A remedy has the names that are known, and does not advise what is done.
func TestCheckNamesTheRemedy(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	signed(t, p)
	p.view.dkim[0].State = keys.Pending
	p.dns.Set("example.com.", `TXT "v=spf1 ip4:192.0.2.1 -all"`, "MX 10 mx.example.com.")
	p.dkimServer(func(z *dnstest.Zones) { z.Forget("s1._domainkey.example.com") })
	want := map[string]string{
		"spf.fail":     "add ip4:198.51.100.7 to",
		"dmarc.fail":   "publish the record of its pending DKIM key, which 'postern dkim show example.com' prints",
		"dkim.pending": "'postern dkim show example.com'",
	}
	wantEach(t, p.look(t.Context(), "spf", "dkim"), want, func(f health.Finding, todo string) bool { return strings.Contains(f.Todo, todo) })
}

// A domain without a record is told once, however many addresses mail leaves from.
func TestCheckTellsAMissingRecordOnce(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	viewed(t, p)
	p.dns.Set("example.com.", "A "+patientAddress)
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
		p.dns.Set("there.test.", "MX 10 mx.there.test.")
		p.dns.Set("mx.there.test.", "A "+address)
	}
}

// served gives it a server as well.
func served(cfg smtptest.Config) func(*testing.T, *patient) {
	return func(t *testing.T, p *patient) {
		hosted("127.0.0.1")(t, p)
		p.c.cfg.Delivery.AllowPrivateMX, p.c.cfg.Delivery.MXPort = true, smtptest.Start(t, cfg).Port()
	}
}

// demand is the policy of all mail hosts.
type demand transport.Policy

func (demand) Domain(_ context.Context, name string) (transport.Domain, error) {
	return transport.Domain{Name: name}, nil
}

func (d demand) Host(context.Context, transport.Domain, string, bool, resolver.Addresses) (transport.Policy, error) {
	return transport.Policy(d), nil
}

func mxFaults() []fault {
	mail := func(host string) func(*testing.T, *patient) { return says("there.test.", "MX 10 "+host) }
	return []fault{
		{"mx.ok", "mx.there.test (127.0.0.1) answers, in clear", served(smtptest.Config{})},
		{"mx.null", "RFC 7505", mail(".")},
		{"mx.null", "RFC 7505", says("there.test.", "MX 0 .", "MX 1 .")},
		{"mx.address", `"192.0.2.1."`, mail("192.0.2.1.")},
		{"mx.null", "no such record", says("there.test.")},
		{"mx.lookup", "SERVFAIL", broken("there.test.")},
		{"mx.address", "private or special address", func(t *testing.T, p *patient) {
			hosted("192.168.1.1")(t, p)
			p.c.cfg.Delivery.AllowPrivateMX = false
		}},
		{"mx.address", "no such record", mail("gone.there.test.")},
		{"mx.unreachable", "refused", func(t *testing.T, p *patient) {
			hosted("127.0.0.1")(t, p)
			p.c.cfg.Delivery.MXPort = int(netip.MustParseAddrPort(closedPort(t)).Port())
		}},
		{"mx.refuses", "554 5.7.1 listed", served(smtptest.Config{Hooks: map[smtptest.Phase]smtptest.Hook{
			smtptest.PhaseBanner: smtptest.Always(smtptest.Reply("554 5.7.1 listed"))}})},
		{"mx.policy", "STARTTLS", func(t *testing.T, p *patient) {
			served(smtptest.Config{})(t, p)
			p.c.policies = demand{Source: transport.SourceOverride, Level: transport.Encrypted}
		}},
		{"mx.self", "loops back", mail("relay.test.")},
	}
}

func TestCheckFindsFaultsOfMailHosts(t *testing.T) {
	t.Parallel()
	find(t, mxFaults(), "mx", func(t *testing.T, p *patient) {
		p.c.opts.MX, p.c.policies = []string{"there.test"}, demand{Source: transport.SourceNone}
		served(smtptest.Config{})(t, p)
	})
}
