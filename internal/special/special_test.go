package special

import (
	"errors"
	"net"
	"net/netip"
	"testing"
)

// special are addresses that must not be connected to, as a resolver could give them.
var special = []string{
	"127.0.0.1", "127.1.2.3", "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "172.16.0.1", "172.31.255.255",
	"192.168.0.1", "169.254.169.254", "100.64.0.1", "100.127.255.255", "192.0.0.1", "192.0.2.1", "192.88.99.1",
	"198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
	"::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::8.8.8.8", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1",
	"64:ff9b:1::1", "100::1", "2001::1", "2001:0:7f00:1::", "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "3fff::1", "5f00::1",
	"fe80::1", "fe80::1%lo", "fec0::1", "fc00::1", "fd12:3456::1", "ff02::1",
	"2607:f8b0:4005:800:0:5efe:10.0.0.1", "2607:f8b0:4005:800:200:5efe:127.0.0.1",
}

var public = []string{
	"8.8.8.8", "1.1.1.1", "9.255.255.255", "11.0.0.0", "100.63.255.255", "100.128.0.0", "172.15.255.255", "172.32.0.0",
	"192.167.255.255", "198.17.255.255", "198.20.0.0", "223.255.255.255", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8",
	"2607:f8b0:4005:800::1", "2a00:1450::1", "2001:4860:4860::8888", "2001:200::1",
}

func TestA20SpecialAddresses(t *testing.T) {
	t.Parallel()
	for _, s := range special {
		if !Is(netip.MustParseAddr(s)) {
			t.Errorf("%s passes", s)
		}
		if err := Refuse("tcp", net.JoinHostPort(s, "25"), nil); !errors.Is(err, Err) {
			t.Errorf("dialling %s: %v, want a refusal", s, err)
		}
	}
	for _, s := range public {
		if Is(netip.MustParseAddr(s)) {
			t.Errorf("%s is refused", s)
		}
	}
	if err := Refuse("tcp", "no address", nil); err == nil {
		t.Error("a text that is not an address passes")
	}
}
