package smtptest

import (
	"context"
	"errors"
	"net"
	"testing"
)

func TestResolver(t *testing.T) {
	t.Parallel()
	var r Resolver
	r.AddMX("Example.com.", 20, "b.example.com.")
	r.AddMX("example.com", 10, "a.example.com.")
	r.AddHost("a.example.com", "192.0.2.1", "2001:db8::1")
	r.ServFail("broken.test")
	r.TimeOut("slow.test")
	r.Stall("stalled.test")

	mx, err := r.LookupMX(t.Context(), "EXAMPLE.com")
	if err != nil || len(mx) != 2 || mx[0].Host != "b.example.com." || mx[1].Pref != 10 {
		t.Errorf("MX %v, %v", mx, err)
	}
	addrs, err := r.LookupIPAddr(t.Context(), "a.example.com.")
	if err != nil || len(addrs) != 2 || addrs[1].String() != "2001:db8::1" {
		t.Errorf("addresses %v, %v", addrs, err)
	}
	if n := r.Queries("MX", "example.com"); n != 1 {
		t.Errorf("%d queries", n)
	}

	over, cancel := context.WithCancel(t.Context())
	cancel()
	tests := []struct {
		name                         string
		notFound, temporary, timeout bool
	}{
		{"none.test", true, false, false},
		{"broken.test", false, true, false},
		{"slow.test", false, true, true},
		{"stalled.test", false, true, true},
	}
	for _, test := range tests {
		ctx := t.Context()
		if test.name == "stalled.test" {
			ctx = over
		}
		_, mxErr := r.LookupMX(ctx, test.name)
		_, addrErr := r.LookupIPAddr(ctx, test.name)
		for _, err := range []error{mxErr, addrErr} {
			var dns *net.DNSError
			if !errors.As(err, &dns) || dns.IsNotFound != test.notFound || dns.IsTemporary != test.temporary || dns.IsTimeout != test.timeout {
				t.Errorf("%s: %#v", test.name, err)
			}
		}
	}
	r.Mend("broken.test")
	r.AddHost("broken.test", "192.0.2.2")
	if _, err := r.LookupIPAddr(t.Context(), "broken.test"); err != nil {
		t.Errorf("after Mend: %v", err)
	}
	r.Forget("broken.test")
	if _, err := r.LookupIPAddr(t.Context(), "broken.test"); err == nil {
		t.Error("found after Forget")
	}
}
