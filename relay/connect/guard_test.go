package connect

import (
	"context"
	"errors"
	"net/netip"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/smtptest"
	"postern/relay/smtp"
)

// TestA20Dial has a server at a private address that an MX leads to: it must never
// see a connection, whichever way the MX leads there.
func TestA20Dial(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	dns := &dnstest.Zones{}
	dns.AddMX("mx.test", 10, "inside.test.")
	dns.AddHost("inside.test", "127.0.0.1")
	dns.AddMX("mapped.test", 10, "mapped-host.test.")
	dns.AddHost("mapped-host.test", "::ffff:127.0.0.1")
	dns.AddHost("direct.test", "127.0.0.1") // no MX
	dns.AddMX("local.test", 10, "localhost.")
	dns.AddHost("localhost", "127.0.0.1", "::1")
	for _, domain := range []string{"mx.test", "mapped.test", "direct.test", "local.test", "[127.0.0.1]", "[IPv6:::1]"} {
		cfg := Config{DNS: dns.Resolver(), Hello: "relay.test", MXPort: server.Port(), AllowLiterals: true}
		c, trouble := New(cfg).Open(context.Background(), domain, nil, Spent{}, watch())
		if trouble == nil {
			c.Client.Close()
			t.Fatalf("%s: connected", domain)
		}
		if !trouble.Permanent || trouble.Reply.Enhanced != (smtp.EnhancedCode{Class: 5, Subject: 4, Detail: 4}) {
			t.Errorf("%s: %v (permanent: %v), want a failure 5.4.4", domain, trouble.Reply, trouble.Permanent)
		}
	}
	if n := server.Conns(); n != 0 {
		t.Errorf("%d connections were made", n)
	}
}

// TestA20Ports checks that the reply tells nothing about ports of a host.
func TestA20Ports(t *testing.T) {
	t.Parallel()
	to := Target{Host: "mx.test", Addr: netip.MustParseAddrPort("8.8.8.8:25")}
	refused := connectTrouble(to, errors.New("connection refused"))
	filtered := connectTrouble(to, context.DeadlineExceeded)
	if refused.Reply != filtered.Reply {
		t.Errorf("closed: %v; filtered: %v", refused.Reply, filtered.Reply)
	}
}
