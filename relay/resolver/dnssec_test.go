package resolver_test

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/miekg/dns"

	"postern/internal/peers"
	"postern/relay/resolver"
)

// signedZones have what DNSSEC can say of a name.
var signedZones = []peers.Zone{
	{Name: "signed.test", Records: []string{
		"@ MX 10 mx", "mx A 127.0.0.1", "mx AAAA ::1", "_25._tcp.mx TLSA 3 1 1 " + strings.Repeat("ab", 32),
		"alias CNAME mx", "twice CNAME alias", "out CNAME mx.unsigned.test.", "lost CNAME mx.expired.test.", "gone CNAME nobody", "*.wild A 127.0.0.1",
	}},
	{Name: "unsigned.test", State: peers.Unsigned, Records: []string{"@ MX 10 mx", "mx A 127.0.0.1", "in CNAME mx.signed.test."}},
	{Name: "bogus.test", State: peers.Bogus, Records: []string{"@ MX 10 mx", "mx A 127.0.0.1"}},
	{Name: "expired.test", State: peers.Expired, Records: []string{"@ MX 10 mx", "mx A 127.0.0.1"}},
	{Name: "lame.test", State: peers.Lame},
}

// TestDNSSEC asks Unbound, which validates what NSD serves.
func TestDNSSEC(t *testing.T) {
	t.Parallel()
	tree := peers.StartSignedTree(t, signedZones...)
	var log bytes.Buffer
	r := resolver.New(resolver.Config{Servers: []string{tree.Resolver}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	const answer, none, temporary = "answer", "none", "temporary"
	for _, test := range []struct {
		name   string
		kind   uint16
		want   string
		secure bool
		says   string // the canonical name, or what a temporary error has
	}{
		{"signed.test", dns.TypeMX, answer, true, "signed.test."},
		{"mx.signed.test", dns.TypeA, answer, true, "mx.signed.test."},
		{"_25._tcp.mx.signed.test", dns.TypeTLSA, answer, true, "_25._tcp.mx.signed.test."},
		{"mx.signed.test", dns.TypeTLSA, none, true, "mx.signed.test."},
		{"nobody.signed.test", dns.TypeA, none, true, "nobody.signed.test."},
		{"a.wild.signed.test", dns.TypeA, answer, true, "a.wild.signed.test."},
		{"alias.signed.test", dns.TypeA, answer, true, "mx.signed.test."},
		{"twice.signed.test", dns.TypeAAAA, answer, true, "mx.signed.test."},
		{"gone.signed.test", dns.TypeA, none, true, "nobody.signed.test."},
		{"out.signed.test", dns.TypeA, answer, false, "mx.unsigned.test."},
		{"out.signed.test", dns.TypeCNAME, answer, true, "out.signed.test."},
		{"lost.signed.test", dns.TypeA, temporary, false, "SERVFAIL"},
		{"unsigned.test", dns.TypeMX, answer, false, "unsigned.test."},
		{"nobody.unsigned.test", dns.TypeA, none, false, "nobody.unsigned.test."},
		{"in.unsigned.test", dns.TypeA, answer, false, "mx.signed.test."},
		{"bogus.test", dns.TypeMX, temporary, false, "SERVFAIL ("},
		{"_25._tcp.mx.bogus.test", dns.TypeTLSA, temporary, false, "SERVFAIL"},
		{"expired.test", dns.TypeMX, temporary, false, "SERVFAIL ("},
		{"nobody.expired.test", dns.TypeA, temporary, false, "SERVFAIL"},
		{"lame.test", dns.TypeMX, temporary, false, "SERVFAIL"},
		{"nobody.test", dns.TypeMX, none, true, "nobody.test."},
	} {
		for range 2 { // the second time the cache may say it
			a, err := r.Lookup(t.Context(), test.name, test.kind)
			got, says := answer, a.Canonical
			switch {
			case errors.Is(err, resolver.ErrNone):
				got = none
			case err != nil:
				got, says = temporary, err.Error()
			}
			if got != test.want || a.Secure != test.secure || !strings.Contains(says, test.says) {
				t.Errorf("%s %s: %s, secure %v, %s (%v); want %s, %v, %s", test.name, dns.TypeToString[test.kind], got, a.Secure, says, err, test.want, test.secure, test.says)
			}
		}
	}
	if addrs, err := r.Addresses(t.Context(), "twice.signed.test"); err != nil || !addrs.Secure || addrs.Canonical != "mx.signed.test." || len(addrs.List) != 2 {
		t.Errorf("addresses %+v, %v", addrs, err)
	}
	if s := r.Stats(); !s.Validates || s.Blind != 0 || s.Kept == 0 || !strings.Contains(log.String(), "validates DNSSEC") {
		t.Errorf("%+v\n%s", s, &log)
	}
}

// TestDNSSECBlind asks a server that does not validate: nothing is Secure, and the log says so.
func TestDNSSECBlind(t *testing.T) {
	t.Parallel()
	tree := peers.StartSignedTree(t, signedZones...)
	var log bytes.Buffer
	r := resolver.New(resolver.Config{Servers: []string{tree.Blind}, Log: slog.New(slog.NewTextHandler(&log, nil))})
	for _, name := range []string{"signed.test", "bogus.test", "expired.test"} {
		if a, err := r.Lookup(t.Context(), name, dns.TypeMX); err != nil || a.Secure {
			t.Errorf("%s: secure %v, %v", name, a.Secure, err)
		}
	}
	if v, err := r.Validation(t.Context(), tree.Blind); v != resolver.Blind || err == nil {
		t.Errorf("validation %d: %v", v, err)
	}
	if s := r.Stats(); s.Validates || s.Blind != 1 || !strings.Contains(log.String(), "level=ERROR") || !strings.Contains(log.String(), "DANE is off") {
		t.Errorf("%+v\n%s", s, &log)
	}
}
