package connect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"postern/internal/dnstest"
	"postern/relay/resolver"
	"postern/relay/upstream"
)

// watch is that of nobody.
func watch() Watch { return Watch{Talking: new(atomic.Bool), Progress: new(atomic.Uint64)} }

func TestExchangers(t *testing.T) {
	t.Parallel()
	var first8 []string
	for i := range maxHosts {
		first8 = append(first8, fmt.Sprintf("mx%02d.many.test", i))
	}
	tests := []struct {
		domain    string
		hosts     []string
		code      int
		enhanced  string
		permanent bool
	}{
		{domain: "one.test", hosts: []string{"mx.one.test"}},
		{domain: "order.test", hosts: []string{"first.order.test", "second.order.test", "third.order.test"}},
		{domain: "no-mx.test", hosts: []string{"no-mx.test"}},
		{domain: "half-null.test", hosts: []string{"mx.half-null.test"}},
		{domain: "backup.test", hosts: []string{"main.backup.test"}},
		{domain: "many.test", hosts: first8},
		{domain: "null.test", code: 556, enhanced: "5.1.10", permanent: true},
		{domain: "self.test", code: 554, enhanced: "5.4.6", permanent: true},
		{domain: "servfail.test", code: 451, enhanced: "4.4.3"},
		{domain: "timeout.test", code: 451, enhanced: "4.4.3"},
		{domain: "[192.0.2.1]", code: 550, enhanced: "5.1.2", permanent: true},
		{domain: "[IPv6:2001:db8::1]", code: 550, enhanced: "5.1.2", permanent: true},
	}
	cfg := Config{DNS: dnstest.MailHosts().Resolver(), Hello: "relay.test"}
	d := New(cfg)
	for _, test := range tests {
		t.Run(test.domain, func(t *testing.T) {
			t.Parallel()
			list, trouble := d.exchangers(context.Background(), test.domain)
			if trouble != nil {
				if trouble.Reply.Code != test.code || trouble.Reply.Enhanced.String() != test.enhanced || trouble.Permanent != test.permanent {
					t.Errorf("trouble %v (permanent: %v), want %d %s (%v)", trouble.Reply, trouble.Permanent, test.code, test.enhanced, test.permanent)
				}
				return
			}
			var hosts []string
			for _, x := range list {
				hosts = append(hosts, x.host)
			}
			if diff := cmp.Diff(test.hosts, hosts); diff != "" {
				t.Errorf("hosts: %s", diff)
			}
		})
	}
}

func TestEqualPreferencesAreShuffled(t *testing.T) {
	t.Parallel()
	first := map[string]bool{}
	for range 100 {
		list := []exchanger{{host: "worse", preference: 2}, {host: "a", preference: 1}, {host: "b", preference: 1}}
		order(list)
		first[list[0].host] = true
		if list[2].host != "worse" {
			t.Fatalf("order %v", list)
		}
	}
	if len(first) != 2 {
		t.Errorf("of two equals only %v is ever first", first)
	}
}

func TestInterleave(t *testing.T) {
	t.Parallel()
	var list []netip.Addr
	for _, s := range []string{"2a00::1", "2a00::2", "2a00::3", "2a00::4", "2a00::5", "8.8.8.8", "8.8.4.4"} {
		list = append(list, netip.MustParseAddr(s))
	}
	var got []string
	for _, a := range interleave(list, 5) {
		got = append(got, a.String())
	}
	if diff := cmp.Diff([]string{"2a00::1", "8.8.8.8", "2a00::2", "8.8.4.4", "2a00::3"}, got); diff != "" {
		t.Error(diff)
	}
	if n := len(interleave(nil, 5)); n != 0 {
		t.Errorf("%d of none", n)
	}
}

// An upstream is looked up in this machine's hosts file too, and by the name that it was given: a
// final dot keeps the search list away. A mail host is a name of DNS.
func TestUpstreamQuery(t *testing.T) {
	t.Parallel()
	d := New(Config{DNS: new(dnstest.Zones).Resolver()})
	if found, err := d.addresses(t.Context(), hostOf(&upstream.Account{Host: "localhost"}), upstream.Origin{}); err != nil || len(found.List) == 0 {
		t.Errorf("upstream: %v, %v", found, err)
	}
	if found, err := d.addresses(t.Context(), exchanger{host: "localhost"}, upstream.Origin{}); !errors.Is(err, resolver.ErrNone) {
		t.Errorf("mail host: %v, %v", found, err)
	}
	if x := hostOf(&upstream.Account{Host: "mailpit."}); x.local != "mailpit." || x.host != "mailpit" {
		t.Errorf("%+v", x)
	}
}

// A walk whose time ended before anything was dialled has trouble to tell.
func TestP05NoTimeLeft(t *testing.T) {
	t.Parallel()
	w := Walk{d: New(Config{DNS: new(dnstest.Zones).Resolver()}), addrs: make([]netip.Addr, 1), Spent: Spent{Begun: time.Now().Add(-attemptTime)}}
	if c, trouble := w.Next(t.Context()); c != nil || trouble == nil || !trouble.Reply.IsTemporary() {
		t.Errorf("%+v, %+v", c, trouble)
	}
}
