// Package special tells private, local and reserved addresses from those of the public network. Connections
// to hosts that strangers choose refuse them.
package special

import (
	"errors"
	"net/netip"
	"syscall"
)

// Err is the refusal to connect to an address that no public server has.
var Err = errors.New("private or special address")

// special4 are IANA's special-purpose IPv4 ranges with multicast and class E.
// Some are reachable (the AS112 and AMT anycast), but no mail host and no application lives there.
var special4 = prefixes(
	"0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16",
	"172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24", "192.31.196.0/24",
	"192.52.193.0/24", "192.88.99.0/24", "192.168.0.0/16", "192.175.48.0/24",
	"198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4",
)

// global6 is all of IPv6 that is given out for global unicast (RFC 4291 section
// 2.4); special6 are the special-purpose ranges in it: protocol assignments with
// Teredo, documentation, 6to4, AS112.
var (
	global6  = netip.MustParsePrefix("2000::/3")
	special6 = prefixes("2001::/23", "2001:db8::/32", "2002::/16", "2620:4f:8000::/48", "3fff::/20")
	nat64    = netip.MustParsePrefix("64:ff9b::/96") // RFC 6052: IPv4 behind a translator
)

func prefixes(list ...string) []netip.Prefix {
	parsed := make([]netip.Prefix, len(list))
	for i, s := range list {
		parsed[i] = netip.MustParsePrefix(s)
	}
	return parsed
}

// Is reports an address that is private, local, reserved, or that may lead
// to such an address through a tunnel or a translator. The methods of netip.Addr
// (IsPrivate, IsLoopback, …) know only some of these.
func Is(addr netip.Addr) bool {
	if addr.Zone() != "" {
		return true
	}
	addr = addr.Unmap()
	if addr.Is4() {
		return within(addr, special4)
	}
	if nat64.Contains(addr) {
		octets := addr.As16()
		return within(netip.AddrFrom4([4]byte(octets[12:])), special4)
	}
	return !global6.Contains(addr) || within(addr, special6) || isISATAP(addr)
}

func within(addr netip.Addr, list []netip.Prefix) bool {
	for _, p := range list {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// isISATAP reports the interface identifier of RFC 5214 section 6.1, which holds an
// IPv4 address.
func isISATAP(addr netip.Addr) bool {
	octets := addr.As16()
	return octets[8]&^0x03 == 0 && octets[9] == 0 && octets[10] == 0x5e && octets[11] == 0xfe
}

// Refuse is a net.Dialer's Control: it sees the address that is dialled, so
// a name that resolves to something else the second time does not evade it.
func Refuse(_, address string, _ syscall.RawConn) error {
	target, err := netip.ParseAddrPort(address)
	if err != nil || Is(target.Addr()) {
		return Err
	}
	return nil
}
