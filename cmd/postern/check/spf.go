package check

import (
	"context"
	"errors"
	"net/netip"
	"strings"

	"blitiri.com.ar/go/spf"

	"postern/admin/health"
	"postern/cmd/postern/receiver"
	"postern/cmd/postern/screen"
	"postern/relay/connect"
	"postern/relay/dkim"
	"postern/relay/resolver"
)

var spfKinds = []kind{
	{"spf.ok", health.OK, "", ""},
	{"spf.none", health.Warning, "A sender domain has no SPF record, so its mail is easily treated as spam.",
		"publish one with this server's address and all others that its mail comes from"},
	{"spf.fail", health.Failed, "A sender domain's SPF record does not allow this server, so its mail is refused or treated as spam.",
		"add TERM to the record that is there; a domain has only one"},
	{"spf.broken", health.Failed, "A sender domain's SPF record is invalid: servers ignore it, or refuse the mail.",
		"correct it: one record, at most ten DNS queries (RFC 7208 section 4.6.4)"},
	{"spf.unknown", health.Warning, "DNS gave no answer about a sender domain's SPF record.", "check the domain's name servers"},
	{"spf.upstream", health.Info, "A sender domain's mail leaves through upstreams; their operators know the include for its SPF record.", ""},
	{"spf.no-address", health.Skipped, "SPF was not checked, since the address that mail leaves from is unknown.", "name the address that mail leaves from with --address"},
	{"spf.more", health.Info, "There are more sender domains than are checked.", ""},
	{"dmarc.ok", health.OK, "", ""},
	{"dmarc.fail", health.Failed, "Mail of a sender domain fails DMARC, since neither DKIM nor SPF passes for it: large providers refuse it.",
		"make a DKIM key with 'postern dkim add DOMAIN', and mend the SPF record"},
	{"dmarc.unknown", health.Warning, "DNS gave no answer about what DMARC judges a sender domain by.", "check the domain's name servers"},
	{"dmarc.none", health.Info, "A sender domain has no DMARC record; large providers want one from bulk senders.", ""},
	{"sender.unknown", health.Warning, "DNS gave no answer about the mail hosts of a sender domain.", "check the domain's name servers"},
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
		defer r.add("spf.more", "sender domains", "%d of %d were checked", mostDomains, len(domains))
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
	subject := "domain " + domain
	to := c.receiver()
	mail := receiver.Mail{Author: domain, Sender: domain, Addrs: addrs, Upstream: !v.byMX(domain)}
	if mail.Upstream {
		r.add("spf.upstream", subject, "%s", spfRecord(ctx, to, domain))
	} else {
		mail.Signatures = receiver.Signatures(v.dkim, domain, dkim.Mode(c.cfg.Delivery.DKIM))
	}
	for _, f := range to.Judge(ctx, mail) {
		switch f.Check {
		case "SPF":
			addSPF(r, subject, f)
		case "DMARC":
			addDMARC(r, v, domain, f)
		}
	}
	c.takesMail(ctx, r, domain)
}

// receiver judges as the servers do that mail is sent to.
func (c *checkup) receiver() receiver.Receiver {
	hostname, _ := c.cfg.ServerName()
	return receiver.Receiver{DNS: c.dns, Hello: hostname, Looks: &c.looks}
}

func addSPF(r *report, subject string, f receiver.Finding) {
	switch spf.Result(f.Result) {
	case spf.Pass:
		r.add("spf.ok", subject, "SPF: %s may send", f.Of)
	case spf.None:
		r.publish("spf.none", subject, f.Publish, "no SPF record (v=spf1)")
	case spf.Fail, spf.SoftFail, spf.Neutral:
		found := health.Kind(kinds()["spf.fail"]).Found(subject, "SPF: %s for %s (%s)", f.Result, f.Of, f.Cause)
		found.Publish, found.Todo = f.Publish, strings.ReplaceAll(found.Todo, "TERM", receiver.Term(netip.MustParseAddr(f.Of)))
		r.take(found)
	case spf.PermError:
		r.add("spf.broken", subject, "SPF: %s", f.Cause)
	default:
		r.add("spf.unknown", subject, "SPF: %s", f.Cause)
	}
}

func addDMARC(r *report, v *mailView, domain string, f receiver.Finding) {
	subject := "domain " + domain
	switch {
	case f.Result == receiver.TempError:
		r.add("dmarc.unknown", subject, "DMARC: %s", f.Why)
	case f.Record == "":
		r.publish("dmarc.none", subject, f.Publish, "DMARC: %s", f.Why)
	case f.Result == receiver.Fail:
		found := health.Kind(kinds()["dmarc.fail"]).Found(subject, "DMARC fails: %s", f.Why)
		if begun := v.begun(domain); len(begun) > len(receiver.Signatures(v.dkim, domain, dkim.Both)) {
			found.Todo = "publish the record of its pending DKIM key, which 'postern dkim show " + begun[0].Domain + "' prints, or mend the SPF record"
		}
		r.take(found)
	default:
		r.add("dmarc.ok", subject, "DMARC passes %s", f.Why)
	}
}

// spfRecord says which record there is.
func spfRecord(ctx context.Context, r receiver.Receiver, domain string) string {
	records, err := r.Records(ctx, domain, "v=spf1")
	switch {
	case err != nil:
		return err.Error()
	case len(records) == 0:
		return "no SPF record (v=spf1)"
	}
	return strings.Join(records, "; ")
}

func (c *checkup) takesMail(ctx context.Context, r *report, domain string) {
	subject := "domain " + domain
	mx, _, err := c.dns.MX(ctx, domain)
	switch {
	case connect.IsNullMX(mx):
		r.add("sender.no-mail", subject, "it has the null MX (RFC 7505)")
	case err == nil:
	case err != nil && !errors.Is(err, resolver.ErrNone):
		r.add("sender.unknown", subject, "MX: %s", receiver.Cause(err))
	default:
		if addrs, err := c.hostAddresses(ctx, domain); err == nil && len(addrs) == 0 {
			r.add("sender.no-mail", subject, "it has neither an MX record nor an address")
		}
	}
}
