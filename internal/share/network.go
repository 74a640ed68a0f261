package share

import "net/netip"

// Network is an address as a holder: an IPv4 address, or the /64 that one IPv6 subscriber has.
// It is the zero Prefix for no address.
func Network(ip netip.Addr) netip.Prefix {
	bits := 64
	if ip = ip.Unmap(); ip.Is4() {
		bits = 32
	}
	network, _ := ip.Prefix(bits) // without the zone
	return network
}
