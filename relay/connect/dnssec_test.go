package connect

import (
	"encoding/pem"
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/peers"
	"postern/internal/smtptest"
	"postern/relay/transport"
)

// TestDANE has NSD and Unbound say what there is to say of a mail host, and a live server behind it.
// A domain without an MX is its own mail host.
func TestDANE(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	h := &host{t: t, ca: ca}
	h.shows("ta.signed.test", "away.unsigned.test")
	server := smtptest.Start(t, h.server)
	clear := smtptest.Start(t, smtptest.Config{})
	record := func(usage string, der []byte) string {
		_, data, _ := strings.Cut(tlsaOf(t, "x", usage, der), "TLSA ")
		return "TLSA " + data
	}
	leaf := h.leaf.Certificate.Certificate[0]
	block, _ := pem.Decode(ca.PEM())
	ee, other := record("3", leaf), record("3", smtptest.NewCA(t).Leaf(t, "x").Certificate.Certificate[0])
	host := func(name, tlsa string) []string {
		return []string{name + " A 127.0.0.1", "_25._tcp." + name + " " + tlsa}
	}
	var signed []string
	for name, tlsa := range map[string]string{
		"ee": ee, "ee-other": other, "ta": record("2", block.Bytes), "ta-name": record("2", block.Bytes), "unusable": "TLSA 1 1 1 " + strings.Repeat("ab", 32), "end": ee,
	} {
		signed = append(signed, host(name, tlsa)...)
	}
	signed = append(signed, "none A 127.0.0.1", "alias CNAME end", "twice CNAME alias", "out CNAME away.unsigned.test.", "_25._tcp.out "+ee)
	tree := peers.StartSignedTree(t,
		peers.Zone{Name: "signed.test", Records: signed},
		peers.Zone{Name: "unsigned.test", State: peers.Unsigned, Records: append(host("away", other), "in CNAME end.signed.test.")},
		peers.Zone{Name: "bogus.test", State: peers.Bogus, Records: append(host("@", ee), host("mx", ee)...)},
		peers.Zone{Name: "expired.test", State: peers.Expired, Records: host("mx", ee)},
		peers.Zone{Name: "_tcp.forged.test", State: peers.Bogus}, // somebody says that there is no TLSA record
		peers.Zone{Name: "forged.test", Records: []string{"@ A 127.0.0.1"}},
		peers.Zone{Name: "_tcp.lame.test", State: peers.Lame},
		peers.Zone{Name: "lame.test", Records: []string{"@ A 127.0.0.1"}},
	)
	open := func(at, domain string, to *smtptest.Server) (*Conn, *Trouble) {
		dns := dnstest.At(at)
		c, trouble := New(Config{DNS: dns, Hello: "relay.test", MXPort: to.Port(), AllowPrivateMX: true, Roots: ca.Pool(),
			Policies: published{Finder: transport.New(transport.Config{DNS: dns})}}).Open(t.Context(), domain, nil, Spent{}, watch())
		if c != nil {
			c.Close()
		}
		return c, trouble
	}
	for domain, want := range map[string]string{
		"ee.signed.test": "verified dane", "ee-other.signed.test": "451 4.7.5", "ta.signed.test": "verified dane", "ta-name.signed.test": "451 4.7.5",
		"unusable.signed.test": "unverified dane", "none.signed.test": "unverified none", "alias.signed.test": "verified dane", "twice.signed.test": "verified dane",
		"out.signed.test": "verified dane", "away.unsigned.test": "unverified none", "in.unsigned.test": "unverified none",
		"bogus.test": "451 4.4.3", "mx.bogus.test": "451 4.4.3", "mx.expired.test": "451 4.4.3", "forged.test": "451 4.4.3", "lame.test": "451 4.4.3",
	} {
		c, trouble := open(tree.Resolver, domain, server)
		if trouble != nil && !strings.HasPrefix(trouble.Reply.String(), want) || trouble == nil && !strings.Contains(c.TLS, " "+want+" ") {
			t.Errorf("%s: %+v, %+v; want %s", domain, c, trouble, want)
		}
		if demands := strings.Contains(want, "dane") || trouble != nil; demands {
			if _, trouble := open(tree.Resolver, domain, clear); trouble == nil || trouble.Permanent {
				t.Errorf("%s without STARTTLS: %+v", domain, trouble)
			}
		}
	}
	// One that does not validate turns DANE off, and says so (relay/resolver).
	if c, trouble := open(tree.Blind, "ee-other.signed.test", server); trouble != nil || !strings.Contains(c.TLS, " unverified none ") {
		t.Errorf("a resolver that does not validate: %+v, %+v", c, trouble)
	}
	if n := server.Reached(smtptest.PhaseMail) + clear.Reached(smtptest.PhaseMail); n != 0 {
		t.Errorf("%d MAIL", n)
	}
}
