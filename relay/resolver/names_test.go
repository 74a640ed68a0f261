package resolver_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/relay/resolver"
)

// TestP04FamiliesAreJudgedOneByOne asks in memory and, where that takes no time, a server.
func TestP04FamiliesAreJudgedOneByOne(t *testing.T) {
	t.Parallel()
	for _, test := range dnstest.LookupCases {
		t.Run(test.Name, func(t *testing.T) {
			t.Parallel()
			var z dnstest.Zones
			z.Plant("host.test", test.A, test.AAAA)
			asked := z.Both(t)
			if strings.Contains(test.Name, "timeout") {
				delete(asked, "server")
			}
			for by, r := range asked {
				addrs, err := r.Addresses(t.Context(), "host.test")
				got := "unknown"
				switch {
				case len(addrs.List) > 0:
					got = "used"
				case errors.Is(err, resolver.ErrNone):
					got = "none"
				}
				if got != test.Want || (err == nil) != (got == "used") {
					t.Errorf("%s: %s (%v, %v), want %s", by, got, addrs, err, test.Want)
				}
			}
		})
	}
}

// IPv6 is first where there is a way to it.
func TestAddressesInOrder(t *testing.T) {
	t.Parallel()
	for _, six := range []string{"::1", "2001:db8::1", "fe80::1"} {
		var z dnstest.Zones
		z.AddHost("host.test", "127.0.0.1", six)
		want := "[127.0.0.1 " + six + "]"
		if hasWay(six) {
			want = "[" + six + " 127.0.0.1]"
		}
		if addrs, err := z.Resolver().Addresses(t.Context(), "host.test"); err != nil || fmt.Sprint(addrs.List) != want {
			t.Errorf("%v, %v; want %s", addrs, err, want)
		}
	}
}

// hasWay reports that this machine has a way to an address.
func hasWay(to string) bool {
	conn, err := net.Dial("udp6", net.JoinHostPort(to, "9"))
	if err != nil {
		return false
	}
	conn.Close()
	own := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
	return own.WithZone("") == netip.MustParseAddr(to) || own.IsGlobalUnicast() && !own.IsPrivate()
}
