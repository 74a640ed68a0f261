package check

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"

	"blitiri.com.ar/go/spf"
	"golang.org/x/net/publicsuffix"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/resolver"
)

var spfKinds = []kind{
	{"spf.ok", health.OK, "", ""},
	{"spf.none", health.Warning, "A sender domain has no SPF record, so its mail is easily taken for spam.",
		"publish one, such as v=spf1 mx ip4:ADDRESS -all with this server's address"},
	{"spf.fail", health.Failed, "A sender domain's SPF record does not allow this server, so its mail is refused or taken for spam.",
		"add ip4:ADDRESS or ip6:ADDRESS of this server"},
	{"spf.broken", health.Failed, "A sender domain's SPF record is wrong: it counts as none or as a refusal.",
		"correct it: one record, at most ten DNS questions (RFC 7208 section 4.6.4)"},
	{"spf.unknown", health.Warning, "DNS gave no answer about a sender domain's SPF record.", "check the domain's name servers"},
	{"spf.upstream", health.Info, "A sender domain's mail leaves by upstreams; their operators know the include for its SPF record.", ""},
	{"spf.no-address", health.Skipped, "SPF was not checked, since the address that mail leaves from is unknown.", "name it with --address"},
	{"spf.more", health.Info, "There are more sender domains than are checked.", ""},
	{"dmarc.ok", health.OK, "", ""},
	{"dmarc.none", health.Info, "A sender domain has no DMARC record; large providers want one from bulk senders.", ""},
	{"sender.no-mail", health.Warning, "A sender domain takes no mail: bounces are lost, and many servers refuse its mail.",
		"give it an MX record, or remove its sender patterns"},
}

// mostDomains is how many sender domains are looked at.
const mostDomains = 20

func (c *checkup) lookAtSenderDomains(ctx context.Context, r *report) {
	v, err := c.view(ctx)
	if err != nil {
		r.skip("sender domains", "%v", err)
		return
	}
	domains := v.senderDomains()
	if len(domains) > mostDomains {
		defer r.add("spf.more", "sender domains", "%d of %d were looked at", mostDomains, len(domains))
		domains = domains[:mostDomains]
	}
	if len(domains) == 0 {
		return
	}
	addrs, err := c.sendingAddresses(ctx)
	if err != nil {
		r.skip("sender domains", "%v", err)
		return
	}
	if len(addrs) == 0 && v.byMX("") {
		r.add("spf.no-address", "sender domains", "%s", screen.Few(domains))
	}
	r.each(ctx, len(domains), func(ctx context.Context, i int, r *report) {
		ctx, cancel := context.WithTimeout(ctx, questionsTime)
		defer cancel()
		c.senderDomain(ctx, r, v, domains[i], addrs)
	})
}

func (c *checkup) senderDomain(ctx context.Context, r *report, v *mailView, domain string, addrs []netip.Addr) {
	if v.byMX(domain) {
		for _, addr := range addrs {
			if c.spf(ctx, r, domain, addr) == spf.None {
				break // and so for all of them
			}
		}
	} else {
		r.add("spf.upstream", "domain "+domain, "%s", c.spfRecord(ctx, domain))
	}
	c.dmarc(ctx, r, domain)
	c.takesMail(ctx, r, domain)
}

// spf judges as a receiving server does, with the resolver of deliveries.
func (c *checkup) spf(ctx context.Context, r *report, domain string, addr netip.Addr) spf.Result {
	subject := "domain " + domain
	hostname, _ := c.cfg.ServerName()
	result, err := spf.CheckHostWithSender(net.IP(addr.AsSlice()), hostname, "postmaster@"+domain,
		spf.WithContext(ctx), spf.WithResolver(spfResolver{c.dns}))
	switch result {
	case spf.Pass:
		r.add("spf.ok", subject, "%s may send its mail", addr)
	case spf.None:
		r.add("spf.none", subject, "no record (v=spf1)")
	case spf.Fail, spf.SoftFail, spf.Neutral:
		r.add("spf.fail", subject, "%s: %s (%v)", addr, result, err)
	case spf.PermError:
		r.add("spf.broken", subject, "%v", err)
	default:
		r.add("spf.unknown", subject, "%v", err)
	}
	return result
}

// spfResolver asks for the library that judges.
type spfResolver struct{ dns *resolver.Resolver }

func (s spfResolver) LookupTXT(ctx context.Context, name string) ([]string, error) {
	list, err := s.dns.TXT(ctx, name)
	return list, judged(err)
}

func (s spfResolver) LookupMX(ctx context.Context, name string) (list []*net.MX, err error) {
	records, _, err := s.dns.MX(ctx, name)
	for _, mx := range records {
		list = append(list, &net.MX{Host: mx.Mx, Pref: mx.Preference})
	}
	return list, judged(err)
}

func (s spfResolver) LookupIPAddr(ctx context.Context, host string) ([]net.IPAddr, error) {
	addrs, err := s.dns.Addresses(ctx, host)
	list := make([]net.IPAddr, len(addrs.List))
	for i, a := range addrs.List {
		list[i] = net.IPAddr{IP: a.AsSlice()}
	}
	return list, judged(err)
}

func (s spfResolver) LookupAddr(ctx context.Context, text string) ([]string, error) {
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return nil, err
	}
	list, err := s.dns.Names(ctx, addr)
	return list, judged(err)
}

// judged is an error as the library wants it. It takes one that is not marked as temporary for a
// defect of the record.
func judged(err error) error {
	if err == nil {
		return nil
	}
	none := errors.Is(err, resolver.ErrNone)
	return &net.DNSError{Err: err.Error(), UnwrapErr: err, IsNotFound: none, IsTemporary: !none}
}

// spfRecord says which record there is.
func (c *checkup) spfRecord(ctx context.Context, domain string) string {
	records, err := c.records(ctx, domain, "v=spf1")
	switch {
	case err != nil:
		return err.Error()
	case len(records) == 0:
		return "there is no record (v=spf1)"
	}
	return strings.Join(records, "; ")
}

// records are the TXT records of a name that begin with a version.
func (c *checkup) records(ctx context.Context, name, version string) (list []string, err error) {
	texts, err := c.dns.TXT(ctx, name)
	for _, text := range texts {
		if len(text) >= len(version) && strings.EqualFold(text[:len(version)], version) {
			list = append(list, text)
		}
	}
	if errors.Is(err, resolver.ErrNone) {
		err = nil
	}
	return list, err
}

// dmarc looks at the domain and, when that has none, at the organization's (RFC 7489
// section 6.6.3).
func (c *checkup) dmarc(ctx context.Context, r *report, domain string) {
	subject := "domain " + domain
	asked := []string{domain}
	if org, err := publicsuffix.EffectiveTLDPlusOne(domain); err == nil && org != domain {
		asked = append(asked, org)
	}
	for _, name := range asked {
		records, err := c.records(ctx, "_dmarc."+name, "v=DMARC1")
		if err != nil {
			r.add("spf.unknown", subject, "DMARC: %v", err)
			return
		}
		if len(records) > 0 {
			r.add("dmarc.ok", subject, "DMARC: %s", records[0])
			return
		}
	}
	r.add("dmarc.none", subject, "no record at _dmarc.%s", domain)
}

func (c *checkup) takesMail(ctx context.Context, r *report, domain string) {
	subject := "domain " + domain
	mx, _, err := c.dns.MX(ctx, domain)
	switch {
	case connect.IsNullMX(mx):
		r.add("sender.no-mail", subject, "it has the null MX (RFC 7505)")
	case err == nil:
	case err != nil && !errors.Is(err, resolver.ErrNone):
		r.add("spf.unknown", subject, "MX: %v", err)
	default:
		if addrs, err := c.hostAddresses(ctx, domain); err == nil && len(addrs) == 0 {
			r.add("sender.no-mail", subject, "it has neither an MX record nor an address")
		}
	}
}
