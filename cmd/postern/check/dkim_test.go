package check

import (
	"context"
	"testing"
	"time"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/resolver"
	"postern/relay/upstream"
)

// signed gives a patient's sender domain a key that signs, and name servers that have its record.
func signed(t *testing.T, p *patient) {
	t.Helper()
	viewed(t, p)
	p.view.dkim = []keys.Key{{Domain: "example.com", Selector: "s1", Algorithm: dkim.Ed25519, State: keys.Active,
		Since: time.Now().Add(-100 * 24 * time.Hour), EveryDays: 180, Public: []byte("the public half")}}
	p.dkimServer(func(z *dnstest.Zones) {
		z.Add("example.com. IN NS ns1.example.com.", p.view.dkim[0].Zone())
		z.AddHost("ns1.example.com", "192.0.2.1")
	})
}

// dkimServer makes the patient's name server an authoritative one, once fill has changed its zones.
func (p *patient) dkimServer(fill func(z *dnstest.Zones)) {
	fill(p.dns)
	p.c.dns = resolver.New(resolver.Config{Servers: []string{"one"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		reply, err := p.dns.Exchange(ctx, server, query)
		if reply != nil {
			reply.Authoritative = true
		}
		return reply, err
	}})
}

// dkimState plants a key in a state whose record is not there.
func dkimState(s keys.State) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) {
		p.view.dkim[0].State = s
		p.dkimServer(func(z *dnstest.Zones) { z.Forget("s1._domainkey.example.com") })
	}
}

func dkimFaults() []fault {
	return []fault{
		{"dkim.ok", "it signs (ed25519)", nothing},
		{"dkim.ok", "it is published, and will sign", func(_ *testing.T, p *patient) { p.view.dkim[0].State = keys.Pending }},
		{"dkim.ok", "its record is there", func(_ *testing.T, p *patient) { p.view.dkim[0].State = keys.Retiring }},
		{"dkim.none", "no key signs its mail by mx", func(_ *testing.T, p *patient) { p.view.dkim = nil }},
		{"dkim.none", "no key signs its mail by out", func(_ *testing.T, p *patient) {
			p.view.dkim = nil
			p.upstream(upstream.Account{DKIM: dkim.OnlyRSA})
		}},
		{"dkim.none", "no rsa key, and its mail by mx is signed by no other", func(_ *testing.T, p *patient) { p.c.cfg.Delivery.DKIM = string(dkim.OnlyRSA) }},
		{"dkim.none", "no key", func(_ *testing.T, p *patient) { p.view.dkim[0].Domain = "mail.example.com" }},
		{"dkim.pending", "ns1.example.com: no record", dkimState(keys.Pending)},
		{"dkim.record", "ns1.example.com: no record", dkimState(keys.Active)},
		{"dkim.record", "the record has another key", func(_ *testing.T, p *patient) { p.view.dkim[0].Public = []byte("another half") }},
		{"dkim.unknown", "ns1.example.com does not answer", func(_ *testing.T, p *patient) {
			p.dkimServer(func(z *dnstest.Zones) { z.ServFail("s1._domainkey.example.com", "TXT") })
		}},
		{"dkim.left", "ns1.example.com: no record", dkimState(keys.Retiring)},
		{"dkim.retired", "s1._domainkey.example.com, retired since", dkimState(keys.Retired)},
		{"dkim.overdue", "and should for 180 days", later(81 * 24 * time.Hour)},
		{"dkim.more", "100 of 101 were looked at", func(_ *testing.T, p *patient) {
			for range mostKeys {
				p.view.dkim = append(p.view.dkim, p.view.dkim[0])
			}
		}},
	}
}

func TestCheckFindsFaultsOfDKIM(t *testing.T) {
	t.Parallel()
	find(t, dkimFaults(), "dkim", signed)
}

// The signatures that mail has count for DMARC.
func TestCheckCountsSignaturesForDMARC(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	signed(t, p)
	p.dns.Set("example.com.", `TXT "v=spf1 -all"`, "MX 10 mx.example.com.", "NS ns1.example.com.")
	wantFinding(t, p.look(t.Context(), "spf"), "dmarc.ok", "by DKIM (ed25519); its policy is none")
	p = p.again()
	signed(t, p)
	p.dns.Set("example.com.", `TXT "v=spf1 -all"`, "MX 10 mx.example.com.", "NS ns1.example.com.")
	p.dkimServer(func(z *dnstest.Zones) { z.Forget("s1._domainkey.example.com") })
	wantFinding(t, p.look(t.Context(), "spf"), "dmarc.fail", "DKIM of example.com (ed25519): fail")
}

// TestCheckWantsNoKeyWhereNothingIsSigned: mail that others sign needs none, and the key of the
// organisational domain is enough.
func TestCheckWantsNoKeyWhereNothingIsSigned(t *testing.T) {
	t.Parallel()
	for name, plant := range map[string]func(*patient){
		"upstream": func(p *patient) { p.view.dkim = nil; allByUpstream(t, p) },
		"off":      func(p *patient) { p.view.dkim = nil; p.c.cfg.Delivery.DKIM = string(dkim.Off) },
		"above":    func(p *patient) { p.view.users[0].Name = "alice@mail.example.com" },
	} {
		p := newPatient(t)
		signed(t, p)
		plant(p)
		if found := p.look(t.Context(), "dkim"); len(found) > 1 {
			t.Errorf("%s: %s", name, told(found))
		}
	}
}
