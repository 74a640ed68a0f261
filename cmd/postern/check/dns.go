package check

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"postern/admin/health"
	"postern/cmd/postern/receiver"
	"postern/cmd/postern/screen"
	"postern/relay/resolver"
)

var dnsKinds = []kind{
	{"dns.resolver", health.Failed, "DNS does not answer, so mail cannot be delivered.", "see that a name server answers, and that /etc/resolv.conf or servers in [dns] names it"},
	{"dns.server", health.Warning, "A name server does not answer, so questions wait for it before others are asked.",
		"start it, or remove it from /etc/resolv.conf or from servers in [dns]"},
	{"dns.dnssec", health.OK, "", ""},
	{"dns.dnssec-off", health.Warning, "A name server does not validate DNSSEC, so DANE is off.",
		"run a validating server such as unbound on this machine, and name it in servers of [dns]"},
	{"dns.dnssec-untrusted", health.Info, "Name servers elsewhere are not trusted for DNSSEC, so DANE is off.",
		"run a validating server such as unbound on this machine; or set trusted in [dns] if nobody can change what they answer"},
	{"dns.dnssec-mixed", health.Warning, "A name server elsewhere is asked beside one that validates DNSSEC, so DANE is off.",
		"remove it from /etc/resolv.conf or from servers in [dns]; or set trusted in [dns] if nobody can change what it answers, and it validates"},
	{"dns.hostname", health.OK, "", ""},
	{"dns.hostname-none", health.Failed, "The hostname is not in DNS; servers refuse mail from such an EHLO name.",
		"add A and AAAA records for it, or correct hostname"},
	{"dns.address-unknown", health.Info, "The hostname has only private addresses, so the one that mail leaves from is unknown.",
		"name the address that mail leaves from with --address; behind NAT it is the router's"},
	{"dns.ptr", health.OK, "", ""},
	{"dns.ptr-none", health.Failed, "The address has no PTR record: large providers refuse its mail.",
		"have its owner (hosting company, provider) set the PTR to the hostname"},
	{"dns.ptr-forward", health.Failed, "The PTR name of the address does not lead back to it: servers treat that as forged.",
		"add an address record for that name, or have the PTR set to the hostname"},
	{"dns.ptr-other", health.Info, "The address's PTR is not the hostname.", ""},
	{"dns.ptr-unused", health.Info, "All mail leaves through upstreams, so this server's PTR does not matter.", ""},
}

// questionsTime bounds what is asked of DNS about one thing.
const questionsTime = 15 * time.Second

// hostAddresses looks a name up; to find none is not an error.
func (c *checkup) hostAddresses(ctx context.Context, host string) (list []netip.Addr, err error) {
	ctx, cancel := context.WithTimeout(ctx, questionsTime)
	defer cancel()
	addrs, err := c.dns.Addresses(ctx, host)
	if errors.Is(err, resolver.ErrNone) {
		return nil, nil
	}
	return addrs.List, err
}

// sendingAddresses are those that mail leaves from, as far as it is known: as the flag
// says, or the public ones of the hostname.
func (c *checkup) sendingAddresses(ctx context.Context) ([]netip.Addr, error) {
	if len(c.opts.Addresses) > 0 {
		return c.opts.Addresses, nil
	}
	if _, err := c.cfg.ServerName(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, questionsTime)
	defer cancel()
	return c.receiver().Addresses(ctx)
}

func (c *checkup) lookAtDNS(ctx context.Context, r *report) {
	hostname, err := c.cfg.ServerName()
	if err != nil {
		r.skip("dns", "%v", err)
		return
	}
	addrs, err := c.hostAddresses(ctx, hostname)
	switch {
	case err != nil:
		r.add("dns.resolver", "dns", "asked for %s: %s", hostname, receiver.Cause(err))
		return
	case len(addrs) == 0:
		r.add("dns.hostname-none", "dns", "%s has no address", hostname)
	default:
		r.add("dns.hostname", "dns", "%s is at %s", hostname, screen.Few(addressTexts(addrs)))
	}
	c.acmeNames(ctx, r)
	if v, err := c.view(ctx); err == nil && len(v.rules) > 0 && !v.byMX("") && len(c.opts.Addresses) == 0 {
		r.add("dns.ptr-unused", "dns", "PTR is not checked: all mail leaves through upstreams")
		return
	}
	c.validation(ctx, r)
	sending, err := c.sendingAddresses(ctx)
	if err == nil && len(sending) == 0 && len(addrs) > 0 {
		r.add("dns.address-unknown", "dns", "%s is at %s", hostname, screen.Few(addressTexts(addrs)))
	}
	r.each(ctx, len(sending), func(ctx context.Context, i int, r *report) { c.reverse(ctx, r, hostname, sending[i]) })
}

// validation asks the name servers for the proof that DANE needs.
func (c *checkup) validation(ctx context.Context, r *report) {
	ctx, cancel := context.WithTimeout(ctx, questionsTime)
	defer cancel()
	untrusted, servers := "dns.dnssec-untrusted", c.dns.Servers()
	found, faults := make([]resolver.Validation, len(servers)), make([]error, len(servers))
	for i, server := range servers {
		if found[i], faults[i] = c.dns.Validation(ctx, server); found[i] == resolver.Validates {
			untrusted = "dns.dnssec-mixed"
		}
	}
	for i, server := range servers {
		subject, err := "name server "+server, faults[i]
		switch found[i] {
		case resolver.Validates:
			r.add("dns.dnssec", subject, "it validates DNSSEC")
		case resolver.Blind:
			r.add("dns.dnssec-off", subject, "it does not validate DNSSEC (%v)", err)
		case resolver.Untrusted:
			r.add(untrusted, subject, "it is not on this machine")
		default:
			if inner := errors.Unwrap(err); inner != nil {
				err = inner
			}
			r.add("dns.server", subject, "%s", strings.TrimPrefix(err.Error(), subject+": "))
		}
	}
}

func addressTexts(addrs []netip.Addr) (texts []string) {
	for _, a := range addrs {
		texts = append(texts, a.String())
	}
	return texts
}

// reverse looks at the name of an address as receiving servers do.
func (c *checkup) reverse(ctx context.Context, r *report, hostname string, addr netip.Addr) {
	ctx, cancel := context.WithTimeout(ctx, questionsTime)
	defer cancel()
	to, subject := c.receiver(), "address "+addr.String()
	name, names, err := to.Name(ctx, addr)
	switch {
	case err != nil:
		r.add("dns.resolver", subject, "%v", err)
	case len(names) == 0:
		r.publish("dns.ptr-none", subject, to.Reverse(addr), "no PTR record")
	case name == "":
		r.add("dns.ptr-forward", subject, "its name is %s, which is not at %s", screen.Few(names), addr)
	default:
		r.add("dns.ptr", subject, "its name is %s", name)
		if !strings.EqualFold(name, hostname) {
			r.add("dns.ptr-other", subject, "%s, and the hostname is %s", name, hostname)
		}
	}
}
