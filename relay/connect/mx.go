package connect

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"

	"github.com/miekg/dns"

	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Bounds of the work that a domain's DNS can cause for one conversation. More hosts than
// these are never useful; RFC 5321 section 5.1 asks for two at least.
const (
	maxHosts     = 8 // looked up
	maxAddresses = 5 // of one host
)

// exchanger is one mail host of a domain.
type exchanger struct {
	host       string // without its final dot
	preference uint16
	literal    netip.Addr // set instead for an address literal
	local      string     // how an administrator has named it: this machine's hosts file and search list count
}

// exchangers lists the mail hosts of a domain in the order in which they are to be
// tried (RFC 5321 section 5.1): by preference, at random among equals, the domain
// itself when there is no MX.
func (d *Dialer) exchangers(ctx context.Context, domain string) ([]exchanger, *Trouble) {
	if strings.HasPrefix(domain, "[") {
		return d.literal(domain)
	}
	if !isHost(domain) {
		return nil, failure(smtp.Permanent(550, 1, 2, smtp.Excerpt(domain)+" is not the name of a domain"), nil)
	}
	if isOutsideDNS(domain) {
		return nil, failure(smtp.Permanent(550, 1, 2, "domain "+domain+" is not in the DNS and has no mail host"), errOutsideDNS)
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.LookupTime)
	defer cancel()
	records, _, err := d.cfg.DNS.MX(ctx, domain)
	if errors.Is(err, resolver.ErrNone) {
		return []exchanger{{host: domain}}, nil
	} else if err != nil {
		return nil, lookupTrouble(domain, err)
	}
	if IsNullMX(records) {
		return nil, failure(smtp.Permanent(556, 1, 10, "domain "+domain+" takes no mail (null MX, RFC 7505)"), nil)
	}
	list := make([]exchanger, 0, len(records))
	for _, mx := range records {
		if host := strings.TrimSuffix(mx.Mx, "."); isHost(host) && !isOutsideDNS(host) {
			list = append(list, exchanger{host: host, preference: mx.Preference})
		}
	}
	if len(list) == 0 {
		return nil, hostless(domain, records)
	}
	order(list)
	return d.beforeSelf(domain, list)
}

// IsNullMX reports the MX records of a domain that takes no mail (RFC 7505 section 3):
// only ".", be it twice. Beside a real host it says nothing.
func IsNullMX(records []*dns.MX) bool {
	return len(records) > 0 && !slices.ContainsFunc(records, func(mx *dns.MX) bool { return mx.Mx != "." })
}

// hostless is the failure of a domain whose MX records name no host, but addresses
// (RFC 5321 section 5.1 wants a domain name there) or impossible names. Nobody can send
// it mail until they are corrected, so the sender is told now.
func hostless(domain string, records []*dns.MX) *Trouble {
	return failure(smtp.Permanent(550, 4, 4, "no MX record of "+domain+" names a host: "+smtp.Excerpt(records[0].Mx)), nil)
}

// order sorts by preference and shuffles equals, to spread the load.
func order(list []exchanger) {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b exchanger) int { return int(a.preference) - int(b.preference) })
}

// beforeSelf drops the hosts that are not better than this one, if this is one of
// the domain's: mail must not go to a host that would give it back (RFC 5321
// section 5.1).
func (d *Dialer) beforeSelf(domain string, list []exchanger) ([]exchanger, *Trouble) {
	for i := range list {
		if strings.EqualFold(list[i].host, d.cfg.Hello) || strings.EqualFold(list[i].host, d.cfg.Origin.Hello) {
			list = slices.DeleteFunc(list[:i:i], func(x exchanger) bool { return x.preference == list[i].preference })
			break
		}
	}
	if len(list) == 0 {
		return nil, loop(domain)
	}
	return list[:min(len(list), maxHosts)], nil
}

// literal is the only host of an address literal's domain.
func (d *Dialer) literal(domain string) ([]exchanger, *Trouble) {
	inner := strings.TrimSuffix(strings.TrimPrefix(domain, "["), "]")
	if len(inner) > 5 && strings.EqualFold(inner[:5], "IPv6:") {
		inner = inner[5:]
	}
	addr, err := netip.ParseAddr(inner)
	if err != nil || !d.cfg.AllowLiterals {
		return nil, failure(smtp.Permanent(550, 1, 2, "mail to address literals is not delivered"), err)
	}
	return []exchanger{{host: domain, literal: addr}}, nil
}

// addresses looks a host up, for connections with that end of ours.
func (d *Dialer) addresses(ctx context.Context, x exchanger, origin upstream.Origin) ([]netip.Addr, error) {
	if x.literal.IsValid() {
		return []netip.Addr{x.literal}, nil
	}
	if isOutsideDNS(x.host) {
		return nil, errOutsideDNS
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.LookupTime)
	defer cancel()
	look, name := d.cfg.DNS.Addresses, x.host
	if x.local != "" {
		look, name = d.cfg.DNS.Local, x.local
	}
	all, err := look(ctx, name)
	usable := slices.DeleteFunc(all.List, func(a netip.Addr) bool { return !origin.Allows(a) })
	if err == nil && len(usable) == 0 {
		err = errVersion
	}
	return interleave(usable, maxAddresses), err
}

// interleave takes addresses of both families by turns, the first one's family
// first, so that a family which does not work here leaves room for the other.
func interleave(list []netip.Addr, most int) []netip.Addr {
	var first, second []netip.Addr
	for _, a := range list {
		if a.Is4() == list[0].Is4() {
			first = append(first, a)
		} else {
			second = append(second, a)
		}
	}
	mixed := make([]netip.Addr, 0, len(list))
	for i := range max(len(first), len(second)) {
		if i < len(first) {
			mixed = append(mixed, first[i])
		}
		if i < len(second) {
			mixed = append(mixed, second[i])
		}
	}
	return mixed[:min(len(mixed), most)]
}

func loop(domain string) *Trouble {
	return failure(smtp.Permanent(554, 4, 6, "mail for "+domain+" loops back to this server"), nil)
}
