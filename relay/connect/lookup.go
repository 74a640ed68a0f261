package connect

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"

	"postern/internal/panics"
	"postern/relay/smtp"
)

// Resolver asks DNS; *net.Resolver with PreferGo is one. Names are given with their
// final dot, networks are "ip4" and "ip6". Errors are *net.DNSError.
//
// The C library's resolver is not one: it reports "no such host" when it has no descriptor
// left, and for some a SERVFAIL.
type Resolver interface {
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupCNAME(ctx context.Context, name string) (string, error)
}

// IsNotFound reports that a name server says of a name, or of the kind of record that
// was asked for, that it does not exist. Anything else says nothing about the name:
// SERVFAIL, REFUSED, no answer in time, no descriptor for the question, or a machine
// whose configuration sends no question to DNS (net.Resolver names no server then).
func IsNotFound(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) && dns.IsNotFound && dns.Server != "" && !dns.IsTemporary && !dns.IsTimeout
}

// Addresses looks a host up. A and AAAA are asked concurrently and judged one by one:
// an address that is there is used whatever became of the other question, and "there
// is no address" (IsNotFound) takes two definite answers. IPv6 addresses are first
// where this machine has a way to them.
func Addresses(ctx context.Context, dns Resolver, host string) ([]netip.Addr, error) {
	type answer struct {
		list []netip.Addr
		err  error
	}
	asked := make(chan answer, 1)
	go func() {
		var six answer
		six.err = (*panics.Guard)(nil).Try("a lookup", func() (err error) {
			six.list, err = dns.LookupNetIP(ctx, "ip6", host)
			return err
		})
		asked <- six
	}()
	list, err := dns.LookupNetIP(ctx, "ip4", host)
	for i := range list {
		list[i] = list[i].Unmap() // net.Resolver writes them as ::ffff:192.0.2.1
	}
	six := <-asked
	if defect := (*panics.Error)(nil); errors.As(six.err, &defect) {
		panic(defect) // the caller has somebody to recover it
	}
	switch {
	case len(six.list) > 0 && hasWay(six.list[0]):
		return append(six.list, list...), nil
	case len(list)+len(six.list) > 0:
		return append(list, six.list...), nil
	case !hasNone(err):
		return nil, err
	case !hasNone(six.err):
		return nil, six.err
	}
	if circle := aliasTrouble(ctx, dns, host); circle != nil {
		return nil, circle
	}
	return nil, err
}

// hasNone reports a definite answer that there is no address of a family. net.Resolver
// says AddrError of one that is written as of the other, ::ffff:192.0.2.1.
func hasNone(err error) bool {
	var other *net.AddrError
	return IsNotFound(err) || errors.As(err, &other)
}

// maxAliases bounds a chain of aliases; real ones have two or three.
const maxAliases = 8

// errAliases is the trouble of a name whose aliases never end.
var errAliases = errors.New("aliases (CNAME) lead in a circle")

// aliasTrouble follows the aliases of a name that seems to have no address. Where they
// lead in a circle some name servers say NOERROR, with the circle and nothing else in
// their answer, which net.Resolver cannot tell from "no such record". A circle is a
// mistake in a zone that is being worked on, and says nothing about the name.
func aliasTrouble(ctx context.Context, dns Resolver, name string) error {
	for range maxAliases {
		target, err := dns.LookupCNAME(ctx, name)
		switch {
		case IsNotFound(err), err == nil && (target == "" || strings.EqualFold(target, name)):
			return nil
		case err != nil:
			return err
		}
		name = target
	}
	return errAliases
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

// isHost reports whether a host or domain may have that name: labels of letters,
// digits, hyphens and (there are some) underscores, the last one not a number (RFC
// 1123 section 2.1, RFC 3696 section 2).
func isHost(name string) bool {
	labels := strings.Split(name, ".")
	for _, label := range labels {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' || strings.ContainsFunc(label, isNoLetter) {
			return false
		}
	}
	return len(name) <= 253 && strings.Trim(labels[len(labels)-1], "0123456789") != ""
}

// errVersion is the trouble of a host without an address of a version of IP that is used.
var errVersion = errors.New("it has no address of the version of IP that this server uses")

// errOutsideDNS is the trouble of a name that is never looked up.
var errOutsideDNS = errors.New("names below .onion and .invalid are not looked up")

// isOutsideDNS reports a special-use name that DNS is not asked about: .onion is for Tor
// only, and the question would tell others of it (RFC 7686 section 2); nothing below
// .invalid exists, whatever a resolver says (RFC 6761 section 6.4).
func isOutsideDNS(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	return strings.EqualFold(last, "onion") || strings.EqualFold(last, "invalid")
}

func isNoLetter(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && r != '-' && r != '_'
}

func lookupTrouble(name string, err error) *Trouble {
	text := "DNS gives no answer about " + name + " now"
	switch {
	case errors.Is(err, errAliases):
		text = "in DNS the " + errAliases.Error() + " for " + name
	case errors.Is(err, errVersion):
		text = name + ": " + errVersion.Error()
	case errors.Is(err, errOutsideDNS):
		text = name + ": " + errOutsideDNS.Error()
	}
	return &Trouble{Reply: smtp.Temporary(451, 4, 3, text), Err: fmt.Errorf("look up %s: %w", name, err), Crowded: isOurs(err)}
}
