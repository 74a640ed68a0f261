package connect

import (
	"cmp"
	"context"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/relay/smtp"
	"postern/relay/transport"
	"postern/relay/upstream"
)

// tlsPolicy is how one conversation is to be protected.
type tlsPolicy struct {
	mode   upstream.TLSMode
	config *tls.Config
	trust  string           // "verified", "pinned" or "unverified"
	source transport.Source // of a mail host's
}

// policyOf gives the policy of a target: an upstream's own, or what a mail host must prove.
func (d *Dialer) policyOf(to Target) tlsPolicy {
	if to.Upstream == nil {
		return d.policyOfHost(to)
	}
	switch up := to.Upstream; {
	case !up.Verified():
		return tlsPolicy{up.TLS, unverified(to.Host), "unverified", ""}
	case up.TLSPins != "":
		return tlsPolicy{up.TLS, pinned(to.Host, up), "pinned", ""}
	default:
		return tlsPolicy{up.TLS, verified(cmp.Or(strings.TrimSuffix(up.TLSName, "."), to.Host), up.CA), "verified", ""}
	}
}

// policyOfHost gives the policy of a mail host.
func (d *Dialer) policyOfHost(to Target) tlsPolicy {
	switch p := to.policy; p.Level {
	case transport.Encrypted:
		return tlsPolicy{upstream.TLSRequire, unverified(to.Host), "unverified", p.Source}
	case transport.Verified:
		cfg := verified(to.Host, "")
		cfg.RootCAs = d.cfg.Roots
		return tlsPolicy{upstream.TLSRequire, cfg, "verified", p.Source}
	case transport.Matched:
		cfg := verified(p.Base, "")
		cfg.InsecureSkipVerify, cfg.VerifyConnection = true, p.Match
		return tlsPolicy{upstream.TLSRequire, cfg, "verified", p.Source}
	default:
		return tlsPolicy{upstream.TLSOpportunistic, unverified(to.Host), "unverified", p.Source}
	}
}

var errPin = errors.New("its key is none of those that are pinned")

// pinned demands a certificate with one of the account's keys, whoever certifies it and for
// whatever name and time.
func pinned(host string, up *upstream.Account) *tls.Config {
	cfg := verified(host, "")
	cfg.InsecureSkipVerify = true
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if up.Pinned(state.PeerCertificates[0]) {
			return nil
		}
		return fmt.Errorf("%w: it is %s", errPin, upstream.Pin(state.PeerCertificates[0]))
	}
	return cfg
}

// unverified takes any certificate, and any version and cipher suite that Go still
// speaks: the other choice is no TLS at all (RFC 7435). Go prefers the good ones.
func unverified(host string) *tls.Config {
	return &tls.Config{
		ServerName:         sniName(host),
		InsecureSkipVerify: true,
		MinVersion:         tls.VersionTLS10,
		CipherSuites:       everySuite(),
		// Microsoft's hosts end a session right after the handshake when tickets
		// are asked for over TLS 1.3 (golang/go#70232).
		SessionTicketsDisabled: true,
	}
}

// everySuite lists the suites of TLS 1.2 and before. Those with RSA key exchange, 3DES
// or RC4 are offered only where they are named.
func everySuite() []uint16 {
	all := slices.Concat(tls.CipherSuites(), tls.InsecureCipherSuites())
	ids := make([]uint16, len(all))
	for i, suite := range all {
		ids[i] = suite.ID
	}
	return ids
}

// verified demands a certificate for host from the authorities of ca, or from the
// system's when ca is empty.
func verified(host, ca string) *tls.Config {
	cfg := &tls.Config{
		ServerName: host, MinVersion: tls.VersionTLS12, SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error { return strongKeys(state.VerifiedChains) },
	}
	if ca != "" {
		// A CA that does not parse leaves an empty pool, which verifies nothing.
		cfg.RootCAs = x509.NewCertPool()
		cfg.RootCAs.AppendCertsFromPEM([]byte(ca))
	}
	return cfg
}

// minRSA is the shortest modulus that is trusted, in bits (NIST SP 800-131A section 3). Go's
// crypto/tls verifies from 1,024 on.
const minRSA = 2048

var errWeakKey = errors.New("a certificate of its chain has an RSA key of less than 2048 bits")

// strongKeys refuses a verified peer when each of its chains has a key that others may have found
// out: the certificate's own, or one that signed.
func strongKeys(chains [][]*x509.Certificate) error {
	weak := func(c *x509.Certificate) bool {
		key, is := c.PublicKey.(*rsa.PublicKey)
		return is && key.N.BitLen() < minRSA
	}
	for _, chain := range chains {
		if !slices.ContainsFunc(chain, weak) {
			return nil
		}
	}
	return errWeakKey
}

// sniName is the name to ask for; address literals have none.
func sniName(host string) string {
	if strings.HasPrefix(host, "[") {
		return ""
	}
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

// defaultTLSTime bounds a handshake where the configuration says nothing.
const defaultTLSTime = 30 * time.Second

// handshake is that of implicit TLS (RFC 8314 section 3).
func (p tlsPolicy) handshake(ctx context.Context, nc net.Conn, limit time.Duration) (*tls.Conn, error) {
	if limit <= 0 {
		limit = defaultTLSTime
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	secured := tls.Client(nc, p.config)
	if err := secured.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	return secured, nil
}

// secure runs STARTTLS (RFC 3207) as the policy has it. handshake says that TLS was
// begun and failed.
func (p tlsPolicy) secure(ctx context.Context, c *Conn, to Target) (t *Trouble, handshake bool) {
	if p.mode == upstream.TLSNone || p.mode == upstream.TLSImplicit {
		return nil, false
	}
	if _, offered := c.Client.Extension("STARTTLS"); !offered {
		if p.mode == upstream.TLSOpportunistic {
			return nil, false
		}
		return &Trouble{
			Reply: smtp.Temporary(451, 7, 4, "TLS is required"+to.demand()+" and "+to.Host+" does not offer STARTTLS"),
			Err:   fmt.Errorf("%s does not offer STARTTLS", to.Host),
			Host:  to.Host, Addr: to.Addr, TLS: to.refused(),
		}, false
	}
	err := c.Client.StartTLS(ctx, p.config)
	switch {
	case err == nil:
		c.TLS = p.facts(c.Client.TLS())
		return nil, false
	case refusedTLS(err):
		if p.mode == upstream.TLSOpportunistic && c.Client.Usable() {
			c.failedTLS = true
			return nil, false
		}
		return conversationTrouble(c, to, err), false
	}
	return tlsTrouble(to, err), true
}

// refusedTLS reports a complete negative reply to STARTTLS itself.
func refusedTLS(err error) bool {
	var stage *smtp.StageError
	return errors.As(err, &stage) && stage.Stage == smtp.StageTLS && !stage.Reply.IsZero()
}

// tlsTrouble describes the failure of a handshake so that an administrator can act on it. A
// certificate's own text stays in the log.
func tlsTrouble(to Target, err error) *Trouble {
	why := "TLS handshake failed"
	var (
		name      x509.HostnameError
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
	)
	switch {
	case errors.Is(err, errWeakKey):
		why = errWeakKey.Error()
	case errors.Is(err, errPin):
		why = errPin.Error()
	case errors.Is(err, transport.ErrNoMatch):
		why = transport.ErrNoMatch.Error()
	case errors.Is(err, transport.ErrOtherName), errors.As(err, &name):
		why = "its certificate is for another name"
	case errors.As(err, &authority):
		why = "its certificate is from an unknown authority"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		why = "its certificate has expired or is not valid yet"
	case errors.As(err, &invalid):
		why = "its certificate is not valid for this use"
	}
	if demand := to.demand(); demand != "" {
		why += "; TLS is required" + demand
	}
	return &Trouble{
		Reply: smtp.Temporary(451, 7, 5, to.Host+": "+why),
		Err:   fmt.Errorf("TLS with %s: %w", to.Host, err),
		Host:  to.Host, Addr: to.Addr, TLS: to.refused(),
	}
}

// refused is what traces have in place of the facts where a mail host did not meet its policy.
func (to *Target) refused() string {
	if to.policy.Level == transport.Opportunistic {
		return ""
	}
	return "- - refused " + string(to.policy.Source)
}

// facts describes a TLS session for traces: "TLS1.3 TLS_AES_128_GCM_SHA256 verified", and of a mail
// host also where its policy comes from, the first name of its certificate, and the day on which
// that ends: "… verified dane mx.example.org 2027-01-31". Of a session in clear there is only where
// the policy comes from, if there is one: "- - clear testing".
func (p tlsPolicy) facts(state *tls.ConnectionState) string {
	switch {
	case state == nil && (p.source == "" || p.source == transport.SourceNone):
		return ""
	case state == nil:
		return "- - clear " + string(p.source)
	}
	text := strings.ReplaceAll(tls.VersionName(state.Version), " ", "") + " " + tls.CipherSuiteName(state.CipherSuite) + " " + p.trust
	if p.source != "" {
		text += " " + string(p.source) + " " + nameOf(state.PeerCertificates[0]) + " " + state.PeerCertificates[0].NotAfter.UTC().Format(time.DateOnly)
	}
	return text
}

// nameOf is the first name that a certificate is for, as far as it can be the name of a host.
func nameOf(c *x509.Certificate) string {
	for _, name := range append(slices.Clone(c.DNSNames), c.Subject.CommonName) {
		if isHost(strings.TrimPrefix(name, "*.")) {
			return name
		}
	}
	return "-"
}

// demand says who demands TLS, for a reply.
func (to *Target) demand() string {
	switch to.policy.Source {
	case transport.SourceDANE:
		return " by TLSA records (DANE)"
	case transport.SourceSTS:
		return " by the domain's MTA-STS policy"
	case transport.SourceOverride:
		return " by this relay's administrator"
	}
	return ""
}
