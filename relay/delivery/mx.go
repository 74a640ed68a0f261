package delivery

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"

	"postern/relay/smtp"
)

// Bounds of what a domain's DNS can make us do for one conversation. More hosts
// than these are never of use; RFC 5321 section 5.1 asks for two at least.
const (
	maxHosts     = 8 // looked up
	maxAddresses = 5 // of one host
)

// exchanger is one mail host of a domain.
type exchanger struct {
	host       string // without its final dot
	preference uint16
	literal    netip.Addr // set instead for an address literal
	local      bool       // a word that this machine knows: its hosts file, its search list
}

// query is the name to look up. All of DNS is meant, and not what a search list makes of it.
func (x exchanger) query() string {
	if x.local {
		return x.host
	}
	return x.host + "."
}

// exchangers lists the mail hosts of a domain in the order in which they are to be
// tried (RFC 5321 section 5.1): by preference, at random among equals, the domain
// itself when there is no MX.
func (d *dialer) exchangers(ctx context.Context, domain string) ([]exchanger, *trouble) {
	if strings.HasPrefix(domain, "[") {
		return d.literal(domain)
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.LookupTime)
	defer cancel()
	records, err := d.cfg.DNS.LookupMX(ctx, domain+".")
	switch {
	case len(records) > 0: // with an error, those are the valid ones
	case notFound(err):
		return []exchanger{{host: domain}}, nil
	default:
		return nil, lookupTrouble(domain, err)
	}
	if len(records) == 1 && strings.Trim(records[0].Host, ".") == "" {
		return nil, failure(smtp.Permanent(556, 1, 10, "domain "+domain+" takes no mail (null MX, RFC 7505)"), nil)
	}
	list := make([]exchanger, 0, len(records))
	for _, mx := range records {
		if host := strings.TrimSuffix(mx.Host, "."); host != "" {
			list = append(list, exchanger{host: host, preference: mx.Pref})
		}
	}
	order(list)
	return d.beforeSelf(domain, list)
}

// order sorts by preference and shuffles equals, to spread the load.
func order(list []exchanger) {
	rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
	slices.SortStableFunc(list, func(a, b exchanger) int { return int(a.preference) - int(b.preference) })
}

// beforeSelf drops the hosts that are not better than this one, if this is one of
// the domain's: mail must not go to a host that would give it back (RFC 5321
// section 5.1).
func (d *dialer) beforeSelf(domain string, list []exchanger) ([]exchanger, *trouble) {
	for i := range list {
		if strings.EqualFold(list[i].host, d.cfg.Hello) {
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
func (d *dialer) literal(domain string) ([]exchanger, *trouble) {
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

// addresses looks a host up.
func (d *dialer) addresses(ctx context.Context, x exchanger) ([]netip.Addr, error) {
	if x.literal.IsValid() {
		return []netip.Addr{x.literal}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, d.cfg.LookupTime)
	defer cancel()
	found, err := d.cfg.DNS.LookupIPAddr(ctx, x.query())
	if err != nil {
		return nil, err
	}
	list := make([]netip.Addr, 0, len(found))
	for _, a := range found {
		if addr, ok := netip.AddrFromSlice(a.IP); ok {
			list = append(list, addr.Unmap().WithZone(a.Zone))
		}
	}
	return interleave(list, maxAddresses), nil
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

// notFound reports that a name, or the kind of record that was asked for, does not
// exist. Anything else (SERVFAIL, a timeout) says nothing about the name.
func notFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound && !dns.IsTemporary && !dns.IsTimeout
}

func lookupTrouble(name string, err error) *trouble {
	if err == nil {
		err = errors.New("no records and no error")
	}
	return &trouble{
		reply: smtp.Temporary(451, 4, 3, "DNS gives no answer about "+name+" now"),
		err:   fmt.Errorf("look up %s: %w", name, err),
	}
}

// failure is trouble for good.
func failure(reply smtp.Reply, err error) *trouble {
	return &trouble{reply: reply, permanent: true, err: err}
}

func loop(domain string) *trouble {
	return failure(smtp.Permanent(554, 4, 6, "mail for "+domain+" loops back to this server"), nil)
}
