package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/miekg/dns"
)

// MX are a domain's MX records, in no order. secure holds for ErrNone too.
func (r *Resolver) MX(ctx context.Context, domain string) (list []*dns.MX, secure bool, err error) {
	answer, err := r.Lookup(ctx, domain, dns.TypeMX)
	return Of[*dns.MX](answer), answer.Secure, err
}

// TXT are the texts of a name's TXT records, each in one piece.
func (r *Resolver) TXT(ctx context.Context, name string) (list []string, err error) {
	answer, err := r.Lookup(ctx, name, dns.TypeTXT)
	for _, txt := range Of[*dns.TXT](answer) {
		list = append(list, strings.Join(txt.Txt, ""))
	}
	return list, err
}

// Names are those that the PTR records of an address say, with their final dots.
func (r *Resolver) Names(ctx context.Context, addr netip.Addr) (list []string, err error) {
	reverse, err := dns.ReverseAddr(addr.String())
	if err != nil {
		return nil, err
	}
	answer, err := r.Lookup(ctx, reverse, dns.TypePTR)
	for _, ptr := range Of[*dns.PTR](answer) {
		list = append(list, ptr.Ptr)
	}
	return list, err
}

// Addresses of a host.
type Addresses struct {
	List      []netip.Addr
	Secure    bool   // DNSSEC proves those of a family
	Canonical string // the name that has them: see Answer
}

// Addresses looks a host up. A and AAAA are asked concurrently and judged one by one:
// an address that is there is used whatever became of the other question, and ErrNone takes two
// definite answers. IPv6 addresses are first where this machine has a way to them.
func (r *Resolver) Addresses(ctx context.Context, host string) (Addresses, error) {
	name := dns.CanonicalName(host)
	if !isName(name) {
		return Addresses{}, &Error{strconv.Quote(host), ErrNone}
	}
	askedSix, askedFour := r.begin(ctx, question{name, dns.TypeAAAA}), r.begin(ctx, question{name, dns.TypeA})
	six, sixErr := r.await(ctx, askedSix)
	four, fourErr := r.await(ctx, askedFour)
	all := Addresses{Canonical: four.Canonical, Secure: four.Secure && fourErr == nil || six.Secure && sixErr == nil}
	switch {
	case fourErr == nil:
	case sixErr == nil:
		all.Canonical = six.Canonical
	case errors.Is(sixErr, ErrNone):
		return Addresses{}, fourErr
	default:
		return Addresses{}, sixErr
	}
	var first, second []netip.Addr
	for _, a := range Of[*dns.AAAA](six) {
		// ::ffff:192.0.2.1 belongs to neither family.
		if addr, ok := netip.AddrFromSlice(a.AAAA.To16()); ok && !addr.Is4In6() {
			first = append(first, addr)
		}
	}
	for _, a := range Of[*dns.A](four) {
		if addr, ok := netip.AddrFromSlice(a.A.To4()); ok {
			second = append(second, addr)
		}
	}
	if len(first) > 0 && !hasWay(first[0]) {
		first, second = second, first
	}
	all.List = append(first, second...)
	if len(all.List) == 0 {
		return all, &Error{strconv.Quote(host), ErrNone}
	}
	return all, nil
}

// hasWay reports whether this machine would send to an IPv6 address from one of the
// same reach, as the rules of RFC 6724 section 6 have it that decide between families:
// not from a link's or a site's own address to a public one. No packet is sent.
func hasWay(to netip.Addr) bool {
	probe, err := net.DialUDP("udp6", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return false
	}
	defer probe.Close()
	local, ok := probe.LocalAddr().(*net.UDPAddr)
	if !ok {
		return false
	}
	from := local.AddrPort().Addr().WithZone("")
	return from == to || from.IsGlobalUnicast() && from.IsPrivate() == to.IsPrivate()
}

// Authorities are the authoritative name servers of the zone that a name is in, by their names
// and addresses. One whose address is not known now is there without one.
func (r *Resolver) Authorities(ctx context.Context, name string) (map[string][]netip.Addr, error) {
	for zone := dns.CanonicalName(name); zone != "."; {
		answer, err := r.Lookup(ctx, zone, dns.TypeNS)
		if err != nil && !errors.Is(err, ErrNone) {
			return nil, err
		}
		if err == nil && answer.Canonical == zone {
			servers := make(map[string][]netip.Addr)
			for _, ns := range Of[*dns.NS](answer) {
				addrs, err := r.Addresses(ctx, ns.Ns)
				if err != nil && ctx.Err() != nil {
					return nil, err
				}
				servers[dns.CanonicalName(ns.Ns)] = addrs.List
			}
			return servers, nil
		}
		next, end := dns.NextLabel(zone, 0)
		if end {
			break
		}
		zone = zone[next:]
	}
	return nil, ErrNone
}
