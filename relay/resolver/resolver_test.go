package resolver_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/relay/resolver"
)

func TestLookup(t *testing.T) {
	t.Parallel()
	var z dnstest.Zones
	z.AddMX("one.test", 10, "mx.one.test")
	z.AddCNAME("alias.test", "one.test")
	z.AddCNAME("out.test", "else.test")
	z.AddMX("else.test", 10, "mx.else.test")
	z.AddCNAME("round.test", "about.test")
	z.AddCNAME("about.test", "round.test")
	z.AddTXT("long.test", strings.Repeat("a", 255), strings.Repeat("b", 255), strings.Repeat("c", 255), strings.Repeat("d", 255), strings.Repeat("e", 255))
	z.ServFail("broken.test")
	z.Refuse("refused.test")
	z.Sign("one.test", "alias.test", "out.test", "long.test", "none.test")
	for by, r := range z.Both(t) {
		for name, test := range map[string]struct {
			kind      uint16
			want      string // the records' data, none, or temporary
			canonical string
			secure    bool
		}{
			"one.test":     {dns.TypeMX, "10 mx.one.test.", "one.test.", true},
			"ONE.test.":    {dns.TypeMX, "10 mx.one.test.", "one.test.", true},
			"alias.test":   {dns.TypeMX, "10 mx.one.test.", "one.test.", true},
			"out.test":     {dns.TypeMX, "10 mx.else.test.", "else.test.", false},
			"one.test..":   {dns.TypeMX, "none", "", false},
			"else.test":    {dns.TypeTXT, "none", "else.test.", false},
			"a.none.test":  {dns.TypeTXT, "none", "a.none.test.", true},
			"round.test":   {dns.TypeMX, "temporary", "", false},
			"broken.test":  {dns.TypeMX, "temporary", "", false},
			"refused.test": {dns.TypeMX, "temporary", "", false},
			"long.test":    {dns.TypeTXT, "long", "long.test.", true},
			resolver.Bogus: {dns.TypeA, "temporary", "", false},
		} {
			answer, err := r.Lookup(t.Context(), name, test.kind)
			var got string
			switch {
			case errors.Is(err, resolver.ErrNone):
				got = "none"
			case err != nil:
				got = "temporary"
			case test.kind == dns.TypeTXT:
				got = map[bool]string{true: "long"}[len(strings.Join(answer.Records[0].(*dns.TXT).Txt, "")) == 5*255]
			default:
				got = fmt.Sprint(resolver.Of[*dns.MX](answer)[0].Preference, " ", resolver.Of[*dns.MX](answer)[0].Mx)
			}
			if got != test.want || answer.Canonical != test.canonical || answer.Secure != test.secure {
				t.Errorf("%s: %s: %s of %q, secure %v (%v); want %s of %q, %v", by, name, got, answer.Canonical, answer.Secure, err, test.want, test.canonical, test.secure)
			}
		}
	}
}
