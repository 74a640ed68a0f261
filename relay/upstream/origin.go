package upstream

import (
	"net/netip"
	"slices"
	"strings"

	"postern/internal/refusal"
	"postern/relay/smtp"
)

// Values of Origin.IP.
const (
	IPv4   = "4"
	IPv6   = "6"
	IPBoth = "both"
)

// Origin is our end of connections: to an upstream, or of a node to all that set none. Empty
// fields stand for the default.
type Origin struct {
	Source string `json:"source,omitempty"` // an IPv4 address, an IPv6 address, or both with a comma between
	IP     string `json:"ip,omitempty"`     // IPv4, IPv6 or IPBoth; "": the versions of Source, or both without one
	Hello  string `json:"hello,omitempty"`  // our name in EHLO; "": the host name
}

// Or takes what o leaves open from a node's own Origin. A source comes with its versions of IP.
func (o Origin) Or(node Origin) Origin {
	if o.Source == "" {
		o.Source = node.Source
		if o.IP == "" {
			o.IP = node.IP
		}
	}
	if o.Hello == "" {
		o.Hello = node.Hello
	}
	return o
}

// sources are the addresses of Source; ok is false for what is none.
func (o Origin) sources() (list []netip.Addr, ok bool) {
	if o.Source == "" {
		return nil, true
	}
	for text := range strings.SplitSeq(o.Source, ",") {
		addr, err := netip.ParseAddr(strings.TrimSpace(text))
		if err != nil || addr.IsMulticast() || addr.Zone() != "" {
			return nil, false
		}
		list = append(list, addr.Unmap())
	}
	return list, len(list) == 1 || len(list) == 2 && list[0].Is4() != list[1].Is4()
}

// SourceFor is the address from which one is to be connected to; the zero Addr leaves it to the
// system.
func (o Origin) SourceFor(to netip.Addr) netip.Addr {
	list, _ := o.sources()
	for _, addr := range list {
		if addr.Is4() == to.Unmap().Is4() && !addr.IsUnspecified() {
			return addr
		}
	}
	return netip.Addr{}
}

// Allows reports an address of a version of IP that is to be used.
func (o Origin) Allows(to netip.Addr) bool {
	is4 := to.Unmap().Is4()
	if o.IP != "" {
		return o.IP == IPBoth || (o.IP == IPv4) == is4
	}
	list, _ := o.sources()
	return len(list) == 0 || slices.ContainsFunc(list, func(a netip.Addr) bool { return a.Is4() == is4 })
}

// Validate returns in a sentence what is wrong; the error is refusal.ErrInvalid.
func (o Origin) Validate() error {
	list, ok := o.sources()
	switch {
	case !ok:
		return refusal.Invalid("source %q is not an IPv4 address, an IPv6 address, or one of each with a comma between them", o.Source)
	case !slices.Contains([]string{"", IPv4, IPv6, IPBoth}, o.IP):
		return refusal.Invalid("IP %q is none of 4, 6 and both", o.IP)
	case len(list) == 1 && (o.IP == IPv4 || o.IP == IPv6) && (o.IP == IPv4) != list[0].Is4():
		return refusal.Invalid("the source %s has no use where only IPv%s is used", o.Source, o.IP)
	case o.Hello != "" && (!smtp.ValidDomain(o.Hello) || !smtp.IsASCII(o.Hello)):
		return refusal.Invalid("EHLO name %q is neither a domain name in ASCII nor an address literal like [192.0.2.1]", o.Hello)
	}
	return nil
}
