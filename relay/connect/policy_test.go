package connect

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/internal/special"
	"postern/relay/transport"
)

// published is what a domain publishes, without a database to keep it in.
type published struct {
	*transport.Finder
	domain transport.Domain
	err    error
}

func (p published) Domain(_ context.Context, name string) (transport.Domain, error) {
	p.domain.Name = name
	return p.domain, p.err
}

// tlsaOf is a record about the key of a certificate.
func tlsaOf(t *testing.T, name, usage string, der []byte) string {
	t.Helper()
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return "_25._tcp." + name + ". 0 IN TLSA " + usage + " 1 1 " + hex.EncodeToString(sum[:])
}

// host is a mail host of a test, with its certificate and DNS.
type host struct {
	t      *testing.T
	ca     *smtptest.CA
	dns    *dnstest.Zones
	server smtptest.Config
	domain transport.Domain
	err    error
	leaf   smtptest.Leaf
	anyTLS bool // see Watch
}

// newHost is mx.signed.test, of the domain signed.test; all is as it should be.
func newHost(t *testing.T) *host {
	h := &host{t: t, ca: smtptest.NewCA(t), dns: &dnstest.Zones{}}
	h.dns.Sign("signed.test")
	h.dns.AddMX("signed.test", 10, "mx.signed.test")
	h.dns.AddHost("mx.signed.test", "127.0.0.1")
	h.shows("mx.signed.test")
	return h
}

// shows has the host show a certificate for names, and its authority's.
func (h *host) shows(names ...string) { h.showsLeaf(h.ca.Leaf(h.t, names...)) }

func (h *host) showsLeaf(leaf smtptest.Leaf) {
	h.leaf = leaf
	block, _ := pem.Decode(h.ca.PEM())
	leaf.Certificate.Certificate = append(leaf.Certificate.Certificate, block.Bytes)
	h.server.TLS = leaf.ServerConfig()
}

// dane publishes a TLSA record about the host's key, or its authority's.
func (h *host) dane(usage string) {
	der := h.leaf.Certificate.Certificate[0]
	if usage == "2" {
		block, _ := pem.Decode(h.ca.PEM())
		der = block.Bytes
	}
	h.dns.Add(tlsaOf(h.t, "mx.signed.test", usage, der))
}

func (h *host) unusable() {
	h.dns.Add("_25._tcp.mx.signed.test. 0 IN TLSA 1 1 1 " + strings.Repeat("00", 32))
}

func (h *host) offersREQUIRETLS() { h.server.ExtensionsTLS = []string{"REQUIRETLS"} }

func (h *host) sts(mode transport.Mode, mx ...string) {
	h.domain.STS = &transport.STS{Mode: mode, MX: mx}
}

// open begins a conversation with the domain's mail host.
func (h *host) open() (*smtptest.Server, *Conn, *Trouble) {
	h.t.Helper()
	server := smtptest.Start(h.t, h.server)
	dns := h.dns.Resolver()
	cfg := Config{DNS: dns, Hello: "relay.test", MXPort: server.Port(), AllowPrivateMX: true, Roots: h.ca.Pool()}
	cfg.Policies = published{transport.New(transport.Config{DNS: dns}), h.domain, h.err}
	seen := watch()
	seen.AnyTLS = h.anyTLS
	c, t := New(cfg).Open(h.t.Context(), "signed.test", nil, Spent{}, seen)
	if c != nil {
		h.t.Cleanup(c.Close)
	}
	return server, c, t
}

// Each row of the policies with a live server: what is said of the session, or why there is none.
// To a host that does not prove what it must, nothing of a message is sent, not even MAIL.
func TestMailHostsProveThemselves(t *testing.T) {
	t.Parallel()
	stripped := func(h *host) { h.server.TLS = nil }
	for _, test := range []struct {
		name string
		set  func(h *host)
		want string // the end of the facts, or a part of the reply
		code string // "": mail goes
	}{
		{"none", func(h *host) { h.shows("other.test") }, "unverified none other.test", ""},
		{"none, in clear", stripped, "", ""},
		{"3 1 1", func(h *host) { h.dane("3") }, "verified dane mx.signed.test", ""},
		{"3 1 1, another name", func(h *host) { h.shows("other.test"); h.dane("3") }, "verified dane other.test", ""},
		{"3 1 1, expired", func(h *host) {
			h.showsLeaf(h.ca.LeafBetween(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "mx.signed.test"))
			h.dane("3")
		}, "verified dane mx.signed.test", ""},
		{"3 1 1, another key", func(h *host) { h.dane("3"); h.shows("mx.signed.test") }, "matches none of the domain's TLSA records; TLS is required by TLSA records (DANE)", "451 4.7.5"},
		{"3 1 1, STARTTLS stripped", func(h *host) { h.dane("3"); stripped(h) }, "TLS is required by TLSA records (DANE) and mx.signed.test does not offer STARTTLS", "451 4.7.4"},
		{"3 1 1, STARTTLS refused", func(h *host) {
			h.dane("3")
			h.server.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseStartTLS: smtptest.Always(smtptest.Reply("454 4.7.0 not now"))}
		}, "not now", "454 4.7.0"},
		{"3 1 1, handshake broken off", func(h *host) {
			h.dane("3")
			h.server.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseHandshake: smtptest.Always(smtptest.Close())}
		}, "TLS handshake failed", "451 4.7.5"},
		{"2 1 1", func(h *host) { h.dane("2") }, "verified dane mx.signed.test", ""},
		{"2 1 1, the domain's name", func(h *host) { h.shows("signed.test"); h.dane("2") }, "verified dane signed.test", ""},
		{"2 1 1, another name", func(h *host) { h.shows("other.test"); h.dane("2") }, "its certificate is for another name", "451 4.7.5"},
		{"unusable", func(h *host) { h.shows("other.test"); h.unusable() }, "unverified dane other.test", ""},
		{"unusable, STARTTLS stripped", func(h *host) { h.unusable(); stripped(h) }, "does not offer STARTTLS", "451 4.7.4"},
		{"TLSA of a domain whose answers are bogus, or spoofed", func(h *host) { h.dane("3"); h.dns.ServFail("_25._tcp.mx.signed.test", "TLSA") }, "no answer that can be trusted", "451 4.4.3"},
		{"bogus though enforced", func(h *host) {
			h.sts(transport.Enforce, "mx.signed.test")
			h.dns.ServFail("_25._tcp.mx.signed.test", "TLSA")
		}, "no answer that can be trusted", "451 4.4.3"},
		{"addresses bogus", func(h *host) { h.dane("3"); h.dns.ServFail("mx.signed.test") }, "DNS does not answer", "451 4.4.3"},
		{"a resolver that does not validate", func(h *host) { h.dane("3"); h.shows("other.test"); h.dns.Blind() }, "unverified none other.test", ""},
		{"enforce", func(h *host) { h.sts(transport.Enforce, "*.signed.test") }, "verified mta-sts mx.signed.test", ""},
		{"enforce, another name", func(h *host) { h.sts(transport.Enforce, "mx.signed.test"); h.shows("other.test") }, "for another name; TLS is required by the domain's MTA-STS policy", "451 4.7.5"},
		{"enforce, unknown authority", func(h *host) {
			h.sts(transport.Enforce, "mx.signed.test")
			h.showsLeaf(smtptest.NewCA(t).Leaf(t, "mx.signed.test"))
		}, "unknown authority", "451 4.7.5"},
		{"enforce, expired", func(h *host) {
			h.sts(transport.Enforce, "mx.signed.test")
			h.showsLeaf(h.ca.LeafBetween(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "mx.signed.test"))
		}, "expired", "451 4.7.5"},
		{"enforce, STARTTLS stripped", func(h *host) { h.sts(transport.Enforce, "mx.signed.test"); stripped(h) }, "does not offer STARTTLS", "451 4.7.4"},
		{"enforce, a host that it does not name", func(h *host) { h.sts(transport.Enforce, "mx2.signed.test") }, "not a mail host by the MTA-STS policy of signed.test", "451 4.7.5"},
		{"testing", func(h *host) { h.sts(transport.Testing, "mx2.signed.test"); h.shows("other.test") }, "unverified testing other.test", ""},
		{"testing, in clear", func(h *host) { h.sts(transport.Testing, "mx.signed.test"); stripped(h) }, "- - clear testing", ""},
		{"mode none", func(h *host) { h.sts(transport.None); h.shows("other.test") }, "unverified none other.test", ""},
		{"DANE beats enforce", func(h *host) { h.sts(transport.Enforce, "mx2.signed.test"); h.shows("other.test"); h.dane("3") }, "verified dane other.test", ""},
		{"override", func(h *host) {
			h.domain.Override = &transport.Override{Level: transport.Opportunistic}
			h.dane("3")
			h.shows("other.test")
		}, "unverified override other.test", ""},
		{"override, in clear", func(h *host) {
			h.domain.Override = &transport.Override{Level: transport.Opportunistic}
			h.dane("3")
			stripped(h)
		}, "- - clear override", ""},
		{"override, STARTTLS refused", func(h *host) {
			h.domain.Override = &transport.Override{Level: transport.Opportunistic}
			h.server.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseStartTLS: smtptest.Always(smtptest.Reply("454 4.7.0 not now"))}
		}, "- - clear override", ""},
		{"testing, handshake broken off", func(h *host) {
			h.sts(transport.Testing, "mx.signed.test")
			h.server.Hooks = map[smtptest.Phase]smtptest.Hook{smtptest.PhaseHandshake: smtptest.Always(smtptest.Close())}
		}, "- - clear testing", ""},
		{"override, encrypted", func(h *host) { h.domain.Override = &transport.Override{Level: transport.Encrypted}; stripped(h) },
			"TLS is required by this relay's administrator", "451 4.7.4"},
		{"override, verified", func(h *host) {
			h.domain.Override = &transport.Override{Level: transport.Verified}
			h.shows("other.test")
		}, "for another name", "451 4.7.5"},
		{"TLS-Required: No", func(h *host) { h.anyTLS = true; h.dane("3"); h.shows("other.test"); h.err = errors.New("away") }, "unverified optional other.test", ""},
		{"TLS-Required: No, in clear", func(h *host) { h.anyTLS = true; h.dane("3"); stripped(h) }, "- - clear optional", ""},
		{"no database", func(h *host) { h.err = errors.New("away") }, "cannot find out now what signed.test demands", "451 4.3.0"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			test.set(h)
			server, c, trouble := h.open()
			switch {
			case test.code == "":
				day, inClear := h.leaf.Certificate.Leaf.NotAfter.UTC().Format(time.DateOnly), test.want == "" || strings.HasPrefix(test.want, "- ")
				if trouble != nil || inClear && c.TLS != test.want || !inClear && !strings.HasSuffix(c.TLS, " "+test.want+" "+day) {
					t.Errorf("%+v, %+v", c, trouble)
				}
			case trouble == nil:
				t.Errorf("mail would go: %s", c.TLS)
			default:
				if got := trouble.Reply.String(); !strings.HasPrefix(got, test.code) || !strings.Contains(got, test.want) || trouble.Permanent {
					t.Errorf("%s (permanent %v)", got, trouble.Permanent)
				}
				if tls, asked := trouble.TLS, server.Conns() > 0; asked && !trouble.Said && !strings.HasPrefix(tls, "- - refused ") {
					t.Errorf("TLS %q", tls)
				}
				if n := server.Reached(smtptest.PhaseMail); n != 0 || server.Conns() > 1 {
					t.Errorf("%d connections and %d MAIL", server.Conns(), n)
				}
			}
		})
	}
}

// Where one host does not prove what it must the next one gets the mail.
func TestTheNextHostProvesItself(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.sts(transport.Enforce, "mx.signed.test")
	h.dns.AddMX("signed.test", 5, "first.signed.test")
	h.dns.AddHost("first.signed.test", "127.0.0.1")
	h.dns.AddMX("signed.test", 6, "second.signed.test")
	h.dns.AddHost("second.signed.test", "127.0.0.1")
	h.dns.ServFail("_25._tcp.second.signed.test", "TLSA")
	if server, c, trouble := h.open(); trouble != nil || c.Host != "mx.signed.test" || server.Conns() != 1 {
		t.Errorf("%+v, %+v", c, trouble)
	}
}

// The name that the server is asked for is that of its TLSA records (RFC 7672 section 8.1).
func TestNameAskedFor(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.dns.Forget("mx.signed.test")
	h.dns.AddCNAME("mx.signed.test", "real.signed.test")
	h.dns.AddHost("real.signed.test", "127.0.0.1")
	h.dns.Add(tlsaOf(t, "real.signed.test", "3", h.leaf.Certificate.Certificate[0]))
	asked := make(chan string, 1)
	h.server.TLS.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		asked <- hello.ServerName
		return nil, nil
	}
	if _, c, trouble := h.open(); trouble != nil || <-asked != "real.signed.test" {
		t.Errorf("%+v, %+v", c, trouble)
	}
}

// Mail with REQUIRETLS goes to a server that has proved to be the one that it is for.
func TestProves(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		set  func(h *host)
		want bool
		wait bool
	}{
		{"a known authority, the MX validated", func(*host) {}, true, false},
		{"another name", func(h *host) { h.shows("other.test") }, false, false},
		{"an unknown authority", func(h *host) { h.showsLeaf(smtptest.NewCA(t).Leaf(t, "mx.signed.test")) }, false, false},
		{"a weak key", func(h *host) {
			key, err := rsa.GenerateKey(rand.Reader, 1024)
			if err != nil {
				h.t.Fatal(err)
			}
			h.showsLeaf(h.ca.LeafOf(h.t, key, "mx.signed.test"))
		}, false, false},
		{"in clear", func(h *host) { h.server.TLS = nil }, false, false},
		{"the MX not validated", func(h *host) { h.dns.Blind() }, false, false},
		{"the MX not validated, by MTA-STS", func(h *host) { h.dns.Blind(); h.sts(transport.Enforce, "mx.signed.test") }, true, false},
		{"the MX not validated, by testing", func(h *host) { h.dns.Blind(); h.sts(transport.Testing, "mx.signed.test") }, true, false},
		{"the MX not validated, by testing without it", func(h *host) { h.dns.Blind(); h.sts(transport.Testing, "mx2.signed.test") }, false, false},
		{"DANE", func(h *host) { h.shows("other.test"); h.dane("3") }, true, false},
		{"the MX not validated, by a policy that is none", func(h *host) { h.dns.Blind(); h.sts(transport.None, "mx.signed.test") }, false, false},
		{"the MX not validated, the policy not to be had", func(h *host) { h.dns.Blind(); h.domain.Unsure = true }, false, true},
		{"the MX not validated, though REQUIRETLS is offered", func(h *host) { h.dns.Blind(); h.offersREQUIRETLS() }, false, true},
		{"the domain not signed, though REQUIRETLS is offered", func(h *host) { h.dns.Sign("other.test"); h.offersREQUIRETLS() }, false, false},
		{"by MTA-STS, not validated, and REQUIRETLS is offered", func(h *host) { h.dns.Blind(); h.offersREQUIRETLS(); h.sts(transport.Enforce, "mx.signed.test") }, true, false},
		{"the policy not to be had", func(h *host) { h.shows("other.test"); h.domain.Unsure = true }, false, false},
		{"TLS fails", func(h *host) { h.server.TLS = &tls.Config{} }, false, true},
		{"unusable TLSA", func(h *host) { h.shows("other.test"); h.unusable() }, false, false},
		{"DANE, overridden, though REQUIRETLS is offered", func(h *host) {
			h.shows("other.test")
			h.dane("3")
			h.offersREQUIRETLS()
			h.domain.Override = &transport.Override{Level: transport.Encrypted}
		}, false, true},
		{"overridden, and REQUIRETLS is not offered", func(h *host) {
			h.shows("other.test")
			h.domain.Override = &transport.Override{Level: transport.Encrypted}
		}, false, false},
		{"overridden, and proves itself", func(h *host) {
			h.offersREQUIRETLS()
			h.domain.Override = &transport.Override{Level: transport.Verified}
		}, true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t)
			test.set(h)
			_, c, trouble := h.open()
			if trouble != nil || c.Proves() != test.want || c.Unsure(t.Context()) != test.wait {
				t.Errorf("%+v, %+v", c, trouble)
			}
		})
	}
}

// The hosts of policies are not private either: domains are chosen by those who send mail.
func TestFetcherGuards(t *testing.T) {
	t.Parallel()
	dns := &dnstest.Zones{}
	dns.AddHost("mta-sts.inside.test", "127.0.0.1", "10.0.0.1")
	if _, err := (Config{DNS: dns.Resolver()}).Fetcher().Policy(t.Context(), "inside.test"); !errors.Is(err, special.Err) {
		t.Errorf("error %v", err)
	}
}

// What 'transport show' says of the hosts of a domain, without a connection.
func TestDemands(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	h.dane("3")
	h.dns.AddMX("signed.test", 20, "backup.signed.test")
	h.dns.AddHost("backup.signed.test", "127.0.0.1")
	h.dns.ServFail("_25._tcp.backup.signed.test", "TLSA")
	dns := h.dns.Resolver()
	p := NewProber(Config{DNS: dns, Policies: published{Finder: transport.New(transport.Config{DNS: dns})}})
	list, err := p.Demands(t.Context(), "signed.test")
	if err != nil || len(list) != 2 || !list[0].MXSecure || list[0].Policy.Source != transport.SourceDANE || !strings.Contains(list[0].Policy.Demands(), "3 1 1") || list[1].Err == nil {
		t.Errorf("%+v, %v", list, err)
	}
}

var _ Policies = (*transport.Finder)(nil)
