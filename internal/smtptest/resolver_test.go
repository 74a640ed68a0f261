package smtptest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestResolver(t *testing.T) {
	t.Parallel()
	var r Resolver
	r.AddMX("Example.com.", 20, "b.example.com.")
	r.AddMX("example.com", 10, "a.example.com.")
	r.AddHost("a.example.com", "192.0.2.1", "2001:db8::1")
	r.ServFail("broken.test")

	mx, err := r.LookupMX(t.Context(), "EXAMPLE.com")
	if err != nil || len(mx) != 2 || mx[0].Host != "b.example.com." || mx[1].Pref != 10 {
		t.Errorf("MX %v, %v", mx, err)
	}
	for network, want := range map[string]string{"ip4": "[192.0.2.1]", "ip6": "[2001:db8::1]"} {
		if addrs, err := r.LookupNetIP(t.Context(), network, "a.example.com."); err != nil || fmt.Sprint(addrs) != want {
			t.Errorf("%s %v, %v", network, addrs, err)
		}
	}
	if n := r.Queries("MX", "example.com"); n != 1 {
		t.Errorf("%d queries", n)
	}
	r.Mend("broken.test")
	r.AddHost("broken.test", "192.0.2.2")
	if _, err := r.LookupNetIP(t.Context(), "ip4", "broken.test"); err != nil {
		t.Errorf("after Mend: %v", err)
	}
	r.Forget("broken.test")
	if _, err := r.LookupNetIP(t.Context(), "ip4", "broken.test"); err == nil {
		t.Error("found after Forget")
	}
}

// TestResolverIsTrue asks the tables, and the real resolver that asks a name server with
// the same tables: what tests believe of net.Resolver is what it does.
func TestResolverIsTrue(t *testing.T) {
	t.Parallel()
	var r Resolver
	r.AddHost("both.test", "192.0.2.1", "2001:db8::1")
	r.AddHost("four.test", "192.0.2.1")
	r.AddHost("six.test", "2001:db8::1")
	r.AddHost("mapped.test", "::ffff:192.0.2.1")
	r.AddMX("mx.test", 10, "both.test.")
	r.AddMX("null.test", 0, ".")
	r.AddMX("null.test", 0, ".")
	r.AddCNAME("alias.test", "both.test")
	r.AddCNAME("dangling.test", "none.test")
	r.AddCNAME("a.circle.test", "b.circle.test")
	r.AddCNAME("b.circle.test", "a.circle.test")
	names := []string{"both.test", "four.test", "six.test", "mapped.test", "mx.test", "null.test", "none.test", "alias.test",
		"dangling.test", "a.circle.test", "b.circle.test"}
	kinds := []string{"MX", "A", "AAAA"}
	for _, kind := range kinds {
		name := strings.ToLower(kind)
		r.ServFail(name+".servfail.test", kind)
		r.Refuse(name+".refused.test", kind)
		r.Stall(name+".stalled.test", kind)
		r.TimeOut(name+".silent.test", kind)
	}
	server := r.ServeDNS(t)
	asks := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
	compare := func(kind, name string) {
		t.Run(name+" "+kind, func(t *testing.T) {
			t.Parallel()
			if want, got := answer(t, asks, kind, name), answer(t, &r, kind, name); got != want {
				t.Errorf("the tables give %s, net.Resolver %s", got, want)
			}
		})
	}
	for _, name := range names {
		for _, kind := range everyKind {
			compare(kind, name)
		}
	}
	// net.Resolver asks for addresses too where it is asked for an alias, and says what it
	// hears first: of a question for one that fails nothing can be told.
	for _, name := range []string{"mx", "a", "aaaa"} {
		for _, fault := range []string{"servfail", "refused", "stalled", "silent"} {
			for _, kind := range kinds {
				compare(kind, name+"."+fault+".test")
			}
		}
	}
}

// answer asks one question and writes down what is said to it.
func answer(t *testing.T, r interface {
	LookupMX(ctx context.Context, name string) ([]*net.MX, error)
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
	LookupCNAME(ctx context.Context, name string) (string, error)
}, kind, name string) string {
	ctx := t.Context()
	if strings.HasPrefix(name, strings.ToLower(kind)+".") && (strings.Contains(name, "stalled") || strings.Contains(name, "silent")) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
	}
	var said []string
	var err error
	switch kind {
	case "MX":
		var list []*net.MX
		list, err = r.LookupMX(ctx, name+".")
		for _, mx := range list {
			said = append(said, fmt.Sprint(mx.Pref, " ", mx.Host))
		}
	case "CNAME":
		var target string
		target, err = r.LookupCNAME(ctx, name+".")
		said = append(said, target)
	default:
		network := map[string]string{"A": "ip4", "AAAA": "ip6"}[kind]
		list, lookupErr := r.LookupNetIP(ctx, network, name+".")
		err = lookupErr
		for _, a := range list {
			said = append(said, a.String())
		}
	}
	slices.Sort(said)
	var dns *net.DNSError
	if errors.As(err, &dns) {
		return fmt.Sprintf("not found: %v, as a server says: %v, temporary: %v, timeout: %v",
			dns.IsNotFound, dns.IsNotFound && dns.Server != "", dns.IsTemporary, dns.IsTimeout)
	}
	return fmt.Sprintf("%v, %T", said, err)
}
