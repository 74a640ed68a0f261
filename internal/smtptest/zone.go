package smtptest

import (
	"context"
	"fmt"
	"net"
)

// NetResolver asks a name server as a node does.
func NetResolver(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
}

// LookupCases are what DNS can say of the addresses of a host, by kind: a fault of
// smtptest, an address, or nothing.
var LookupCases = []struct {
	Name    string
	A, AAAA string
	Want    string // "used", "none", or "unknown"
}{
	{"both", "127.0.0.2", "::1", "used"},
	{"neither", "", "", "none"},
	{"only A", "127.0.0.2", "", "used"},
	{"only AAAA", "", "2001:db8::1", "used"},
	{"A servfail", "servfail", "", "unknown"},
	{"AAAA servfail", "", "servfail", "unknown"},
	{"A refused", "refused", "", "unknown"},
	{"AAAA refused", "", "refused", "unknown"},
	{"both refused", "refused", "servfail", "unknown"},
	{"A servfail, AAAA there", "servfail", "2001:db8::1", "used"},
	{"A there, AAAA servfail", "127.0.0.2", "servfail", "used"},
	{"A there, AAAA refused", "127.0.0.2", "refused", "used"},
	{"A timeout", "timeout", "", "unknown"},
	{"AAAA timeout", "", "timeout", "unknown"},
	{"A there, AAAA timeout", "127.0.0.2", "timeout", "used"},
	{"A timeout, AAAA there", "timeout", "2001:db8::1", "used"},
}

// Plant has host say what a case says of it.
func (dns *Resolver) Plant(host, a, aaaa string) {
	dns.AddMX(host+".mx", 10, "other.test.") // the name is there
	for kind, says := range map[string]string{"A": a, "AAAA": aaaa} {
		switch says {
		case "":
		case "servfail":
			dns.ServFail(host, kind)
		case "refused":
			dns.Refuse(host, kind)
		case "timeout":
			dns.TimeOut(host, kind)
		default:
			dns.AddHost(host, says)
		}
	}
}

// Zone has domains of each kind, as the tests of mail hosts need them.
func Zone() *Resolver {
	dns := &Resolver{}
	dns.AddMX("one.test", 10, "mx.one.test.")
	dns.AddMX("order.test", 30, "third.order.test.")
	dns.AddMX("order.test", 10, "first.order.test.")
	dns.AddMX("order.test", 20, "second.order.test.")
	dns.AddMX("null.test", 0, ".")
	dns.AddMX("half-null.test", 0, ".")
	dns.AddMX("half-null.test", 10, "mx.half-null.test.")
	dns.AddMX("self.test", 10, "Relay.Test.")
	dns.AddMX("backup.test", 10, "main.backup.test.")
	dns.AddMX("backup.test", 20, "equal.backup.test.")
	dns.AddMX("backup.test", 20, "relay.test.")
	dns.AddMX("backup.test", 30, "worse.backup.test.")
	dns.ServFail("servfail.test")
	dns.TimeOut("timeout.test")
	for i := range 40 {
		dns.AddMX("many.test", uint16(i), fmt.Sprintf("mx%02d.many.test.", i))
	}
	return dns
}
