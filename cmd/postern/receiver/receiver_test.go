package receiver

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/relay/dkim"
	"postern/relay/dkim/keys"
	"postern/relay/resolver"
)

var here = netip.MustParseAddr("198.51.100.7")

// healthy has the records of shop.test, whose mail comes from relay.test.
func healthy() *dnstest.Zones {
	z := &dnstest.Zones{}
	z.Set("relay.test", "A 198.51.100.7")
	z.Set("7.100.51.198.in-addr.arpa", "PTR relay.test.")
	z.Set("shop.test", `TXT "v=spf1 ip4:198.51.100.7 -all"`, "NS ns.shop.test.")
	z.AddHost("ns.shop.test", "192.0.2.53")
	z.Add(signedBy("shop.test")[0].Zone())
	z.Set("_dmarc.shop.test", `TXT "v=DMARC1; p=reject; sp=quarantine"`)
	return z
}

func signedBy(domain string) []keys.Key {
	return []keys.Key{{Domain: domain, Selector: "s", Algorithm: dkim.RSA, Public: []byte("the public half")}}
}

// authority asks z as name servers that are authoritative for all zones.
func authority(z *dnstest.Zones) *resolver.Resolver {
	return resolver.New(resolver.Config{Servers: []string{"one"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		reply, err := z.Exchange(ctx, server, query)
		if reply != nil {
			reply.Authoritative = true
		}
		return reply, err
	}})
}

// TestJudge: what a receiver finds, one line each: check, result, aligned or not, why, and what to
// publish.
func TestJudge(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name   string
		change func(z *dnstest.Zones)
		mail   Mail
		want   []string
	}{
		{"all is well", nil, Mail{Author: "shop.test", Sender: "shop.test", Signatures: signedBy("shop.test")}, []string{
			"DKIM shop.test pass aligned: selector s, rsa", "SPF 198.51.100.7 pass aligned: shop.test",
			"DMARC shop.test pass: by DKIM (rsa) and SPF; its policy is reject", "PTR 198.51.100.7 pass: relay.test"}},
		{"below the domain of the keys", nil, Mail{Author: "news.shop.test", Sender: "shop.test", Signatures: signedBy("shop.test")}, []string{
			"DKIM shop.test pass aligned", "SPF 198.51.100.7 pass aligned", "DMARC news.shop.test pass: by DKIM (rsa) and SPF; its policy is quarantine", "PTR"}},
		{"the key is not published", func(z *dnstest.Zones) { z.Forget("s._domainkey.shop.test") },
			Mail{Author: "shop.test", Sender: "other.test", Signatures: signedBy("shop.test")}, []string{
				"DKIM shop.test fail: selector s: ns.shop.test: no record -> s._domainkey.shop.test. IN TXT", "SPF 198.51.100.7 none",
				"DMARC shop.test fail: DKIM of shop.test (rsa): fail; SPF is about other.test", "PTR"}},
		{"nothing is known of the key", func(z *dnstest.Zones) { z.ServFail("s._domainkey.shop.test", "TXT") },
			Mail{Author: "shop.test", Sender: "other.test", Signatures: signedBy("shop.test")}, []string{
				"DKIM shop.test temperror: selector s: ns.shop.test does not answer", "SPF 198.51.100.7 none",
				"DMARC shop.test temperror: DKIM of shop.test (rsa): temperror; SPF is about other.test", "PTR"}},
		{"SPF is enough", func(z *dnstest.Zones) { z.Forget("s._domainkey.shop.test") },
			Mail{Author: "shop.test", Sender: "shop.test", Signatures: signedBy("shop.test")}, []string{
				"DKIM shop.test fail: ", "SPF 198.51.100.7 pass", "DMARC shop.test pass: by SPF; its policy is reject", "PTR"}},
		{"strict", func(z *dnstest.Zones) { z.Set("_dmarc.shop.test", `TXT "v=DMARC1; p=none; adkim=s; aspf=s"`) },
			Mail{Author: "news.shop.test", Sender: "shop.test", Signatures: signedBy("shop.test")}, []string{
				"DKIM shop.test pass: ", "SPF 198.51.100.7 pass: shop.test",
				"DMARC news.shop.test fail: DKIM of shop.test is not aligned with news.shop.test; SPF is about shop.test, which is not aligned with news.shop.test; its policy is none", "PTR"}},
		{"bounces elsewhere", nil, Mail{Author: "shop.test", Sender: "other.test", Signatures: nil}, []string{
			"DKIM shop.test none: mail is not signed", "SPF 198.51.100.7 none: other.test: ",
			"DMARC shop.test fail: mail is not signed; SPF is about other.test, which is not aligned with shop.test; its policy is reject", "PTR"}},
		{"another address", func(z *dnstest.Zones) { z.Set("shop.test", `TXT "v=spf1 a mx include:_spf.test ?all"`) },
			Mail{Author: "shop.test", Sender: "shop.test"}, []string{
				"DKIM shop.test none", "SPF 198.51.100.7 permerror: shop.test: no DNS record found\n",
				"DMARC shop.test fail: mail is not signed; SPF of shop.test: permerror; its policy is reject", "PTR"}},
		{"to add", func(z *dnstest.Zones) { z.Set("shop.test", `TXT "v=spf1 ip4:192.0.2.1 -all"`) },
			Mail{Author: "shop.test", Sender: "shop.test"}, []string{
				"DKIM shop.test none", `-> shop.test. IN TXT ( "v=spf1 ip4:192.0.2.1 ip4:198.51.100.7 -all" )`, "DMARC shop.test fail", "PTR"}},
		{"nothing published", func(z *dnstest.Zones) {
			for _, name := range []string{"shop.test", "_dmarc.shop.test", "7.100.51.198.in-addr.arpa"} {
				z.Forget(name)
			}
		},
			Mail{Author: "shop.test", Sender: "shop.test"}, []string{
				"DKIM shop.test none", `-> shop.test. IN TXT ( "v=spf1 ip4:198.51.100.7 ~all" )`,
				`-> _dmarc.shop.test. IN TXT ( "v=DMARC1; p=none; rua=mailto:postmaster@shop.test" )`,
				"PTR 198.51.100.7 none: no PTR record -> 7.100.51.198.in-addr.arpa. IN PTR relay.test."}},
		{"a notice", func(z *dnstest.Zones) { z.Set("relay.test", "A 198.51.100.7", `TXT "v=spf1 a -all"`) },
			Mail{Author: "shop.test", Signatures: signedBy("shop.test")}, []string{
				"DKIM shop.test pass aligned", "SPF 198.51.100.7 pass: relay.test", "DMARC shop.test pass: by DKIM (rsa); its policy is reject", "PTR"}},
		{"no answer", func(z *dnstest.Zones) {
			for _, name := range []string{"shop.test", "_dmarc.shop.test", "7.100.51.198.in-addr.arpa"} {
				z.ServFail(name)
			}
		}, Mail{Author: "shop.test", Sender: "shop.test", Signatures: signedBy("shop.test")}, []string{
			"DKIM shop.test temperror", "SPF 198.51.100.7 temperror", "DMARC shop.test temperror", "PTR 198.51.100.7 temperror"}},
		{"the address's name leads elsewhere", func(z *dnstest.Zones) { z.Set("7.100.51.198.in-addr.arpa", "PTR host7.isp.test.") },
			Mail{Author: "shop.test", Sender: "shop.test"}, []string{"DKIM", "SPF", "DMARC",
				"PTR 198.51.100.7 fail: host7.isp.test. does not lead back to it -> 7.100.51.198.in-addr.arpa. IN PTR relay.test."}},
		{"by an upstream, signed", nil, Mail{Author: "shop.test", Sender: "shop.test", Signatures: signedBy("shop.test"), Upstream: true}, []string{
			"DKIM shop.test pass aligned", "DMARC shop.test pass: by DKIM (rsa); its policy is reject"}},
		{"by an upstream", nil, Mail{Author: "shop.test", Sender: "shop.test", Upstream: true}, []string{
			"DKIM shop.test none", "DMARC shop.test none: mail is not signed; the upstream may sign, or be in the domain's SPF record; its policy is reject"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			z := healthy()
			if tc.change != nil {
				tc.change(z)
			}
			if !tc.mail.Upstream {
				tc.mail.Addrs = []netip.Addr{here}
			}
			r := Receiver{DNS: authority(z), Hello: "relay.test"}
			got := r.Judge(t.Context(), tc.mail)
			for _, addr := range tc.mail.Addrs {
				got = append(got, r.PTR(t.Context(), addr))
			}
			for i, f := range got {
				line := fmt.Sprintf("%s %s %s", f.Check, f.Of, f.Result)
				if f.Aligned {
					line += " aligned"
				}
				if line += ": " + f.Why; f.Publish != "" {
					line += " -> " + f.Publish
				}
				if i >= len(tc.want) || !strings.Contains(line+"\n", tc.want[i]) {
					t.Errorf("%d: %s", i, line)
				}
			}
			if len(got) != len(tc.want) {
				t.Errorf("%d findings, want %d", len(got), len(tc.want))
			}
		})
	}
}

// The record of a key is asked for once, however often its signatures are judged.
func TestLooks(t *testing.T) {
	t.Parallel()
	z, asked := healthy(), atomic.Int32{}
	r := Receiver{Looks: new(Looks), DNS: resolver.New(resolver.Config{Servers: []string{"one"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		if strings.HasPrefix(query.Question[0].Name, "s._domainkey.") && query.Question[0].Qtype == dns.TypeTXT {
			asked.Add(1)
		}
		return z.Exchange(ctx, server, query)
	}})}
	for _, author := range []string{"shop.test", "news.shop.test"} {
		r.Judge(t.Context(), Mail{Author: author, Signatures: signedBy("shop.test"), Upstream: true})
	}
	if asked.Load() != 1 {
		t.Errorf("asked %d times", asked.Load())
	}
}

// A domain that takes no mail needs no term for its mail hosts, and one that does has it.
func TestNewRecord(t *testing.T) {
	t.Parallel()
	z := healthy()
	z.AddMX("mail.test", 10, "mx.mail.test")
	r := Receiver{DNS: z.Resolver(), Hello: "relay.test"}
	for domain, want := range map[string]string{"mail.test": "mx ", "none.test": ""} {
		if got := r.allowing(t.Context(), domain, []netip.Addr{here}); got != domain+`. IN TXT ( "v=spf1 `+want+`ip4:198.51.100.7 ~all" )` {
			t.Errorf("%s", got)
		}
	}
}

func TestAllowing(t *testing.T) {
	t.Parallel()
	six := netip.MustParseAddr("2001:db8::7")
	for record, want := range map[string]string{
		"v=spf1 -all":                     "v=spf1 ip4:198.51.100.7 ip6:2001:db8::7 -all",
		"v=spf1 ip4:198.51.100.7 a ~ALL":  "v=spf1 ip4:198.51.100.7 a ip6:2001:db8::7 ~ALL",
		"v=spf1 a redirect=_spf.test":     "v=spf1 a ip4:198.51.100.7 ip6:2001:db8::7 redirect=_spf.test",
		"v=spf1 mx":                       "v=spf1 mx ip4:198.51.100.7 ip6:2001:db8::7",
		"v=spf1 include:all.test exp=all": "v=spf1 include:all.test exp=all ip4:198.51.100.7 ip6:2001:db8::7",
	} {
		z := &dnstest.Zones{}
		z.AddTXT("shop.test", record)
		r := Receiver{DNS: z.Resolver(), Hello: "relay.test"}
		if got := r.allowing(t.Context(), "shop.test", []netip.Addr{here, six}); got != `shop.test. IN TXT ( "`+want+`" )` {
			t.Errorf("%q became %s", record, got)
		}
	}
}
