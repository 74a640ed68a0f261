package connect

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"postern/internal/special"
	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/transport"
)

// Policies say what the mail hosts of domains must prove: *transport.Finder.
type Policies interface {
	Domain(ctx context.Context, name string) (transport.Domain, error)
	Host(ctx context.Context, d transport.Domain, host string, mxSecure bool, addrs resolver.Addresses) (transport.Policy, error)
}

// demand finds out what the host must prove, or why it gets no mail now.
func (w *Walk) demand(ctx context.Context, addrs resolver.Addresses) *Trouble {
	if w.d.cfg.Policies == nil || w.Upstream != nil || w.host.literal.IsValid() {
		return nil
	}
	if w.anyTLS {
		w.policy = transport.Policy{Source: transport.SourceOptional}
		return nil
	}
	var err error
	if w.demands.Name == "" {
		w.demands, err = w.d.cfg.Policies.Domain(ctx, w.domain)
	}
	if err != nil {
		w.hosts = nil // the demands on the others are as unknown
		return &Trouble{
			Reply: smtp.Temporary(451, 3, 0, "this server cannot find out now what "+w.domain+" demands of TLS"),
			Err:   fmt.Errorf("transport policy of %s: %w", w.domain, err), Crowded: true,
		}
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.cfg.LookupTime)
	defer cancel()
	w.policy, err = w.d.cfg.Policies.Host(ctx, w.demands, w.host.host, w.host.secure, addrs)
	if err == nil {
		return nil
	}
	reply := smtp.Temporary(451, 4, 3, "DNS gives no answer that can be trusted about the TLSA records of "+w.host.host)
	if errors.Is(err, transport.ErrNotAllowed) {
		reply = smtp.Temporary(451, 7, 5, w.host.host+" is not a mail host by the MTA-STS policy of "+w.domain)
	}
	return &Trouble{Reply: reply, Err: fmt.Errorf("mail host %s: %w", w.host.host, err), Host: w.host.host, TLS: "- - refused " + string(w.policy.Source)}
}

// Fetcher gets the MTA-STS policies of domains. Like conversations with MX, it does not connect to
// private and special addresses.
func (c Config) Fetcher() *transport.Fetcher {
	c = c.withDefaults()
	dialer := net.Dialer{Timeout: c.ConnectTime}
	if !c.AllowPrivateMX {
		dialer.Control = special.Refuse
	}
	return &transport.Fetcher{Dial: dialer.DialContext, Addresses: func(ctx context.Context, host string) ([]netip.Addr, error) {
		found, err := c.DNS.Addresses(ctx, host)
		return interleave(found.List, maxAddresses), err
	}}
}

// Demand is what a mail host must prove, or why it gets no mail now.
type Demand struct {
	Host     string
	MXSecure bool // that it is a host of the domain was validated
	Policy   transport.Policy
	Err      error
	// Permanent says that mail for the domain fails and does not wait: it does not exist, or takes none.
	Permanent bool
}

// Demands finds what the mail hosts of a domain must prove, in the order of their preference. It
// connects to none of them.
func (p *Prober) Demands(ctx context.Context, domain string) ([]Demand, error) {
	all, t := p.d.walkTo(ctx, domain, nil)
	switch {
	case t != nil && t.Permanent:
		return []Demand{{Err: errors.New(t.Reply.Text), Permanent: true}}, nil
	case t != nil:
		return nil, errors.New(t.Reply.Text)
	}
	var list []Demand
	for i, x := range all.hosts {
		one := all.only(i)
		t := one.lookUp(ctx)
		d := Demand{Host: x.host, MXSecure: x.secure, Policy: one.policy}
		if t != nil {
			d.Err, d.Permanent = errors.New(t.Reply.Text), t.Permanent
		}
		list = append(list, d)
	}
	return list, nil
}

// Proves reports that the server has proved, under TLS, to be one that the mail is for: by the
// setting of the upstream; or by a certificate for a mail host that validated records or an MTA-STS
// policy name (RFC 8689 section 4.2.1).
func (c *Conn) Proves() bool {
	state := c.Client.TLS()
	w := &c.Walk
	switch {
	case state == nil:
		return false
	case w.Upstream != nil:
		return w.Upstream.Verified()
	case !w.host.secure && (w.demands.STS == nil || w.demands.STS.Mode == transport.None || !w.demands.STS.Allows(w.host.host)):
		return false
	case w.policy.Level >= transport.Verified:
		return true
	}
	others := x509.NewCertPool()
	for _, cert := range state.PeerCertificates[1:] {
		others.AddCert(cert)
	}
	chains, err := state.PeerCertificates[0].Verify(x509.VerifyOptions{DNSName: w.host.host, Roots: w.d.cfg.Roots, Intermediates: others})
	return err == nil && strongKeys(chains) == nil
}

// Unsure reports that mail with REQUIRETLS may go later, though not over this connection: TLS, the
// policy, or a host of better preference was not available; or the host offers REQUIRETLS, and nothing
// could prove it, since an admin overrode its policy when the connection began, or the name server
// does not validate.
func (c *Conn) Unsure(ctx context.Context) bool {
	w := &c.Walk
	_, offers := c.Client.Extension("REQUIRETLS")
	switch {
	case w.Upstream != nil:
		return false
	case w.missed, w.demands.Unsure && !w.host.secure:
		return true
	case !offers, c.Proves():
		return false
	case w.policy.Source == transport.SourceOverride:
		w.missed = true // for the hosts after it, too
		return true
	}
	ctx, cancel := context.WithTimeout(ctx, w.d.cfg.LookupTime)
	defer cancel()
	w.missed = w.d.cfg.DNS.Lapsed(ctx, w.asked)
	return w.missed
}
