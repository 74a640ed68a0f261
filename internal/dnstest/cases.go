package dnstest

import "fmt"

// LookupCases are what DNS can say of the addresses of a host, by kind: a fault of
// Zones, an address, or nothing.
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
func (z *Zones) Plant(host, a, aaaa string) {
	z.AddMX(host+".mx", 10, "other.test.") // the name is there
	for kind, says := range map[string]string{"A": a, "AAAA": aaaa} {
		switch says {
		case "":
		case "servfail":
			z.ServFail(host, kind)
		case "refused":
			z.Refuse(host, kind)
		case "timeout":
			z.TimeOut(host, kind)
		default:
			z.AddHost(host, says)
		}
	}
}

// MailHosts has domains of each kind, as the tests of mail hosts need them.
func MailHosts() *Zones {
	z := &Zones{}
	z.AddMX("one.test", 10, "mx.one.test.")
	z.AddMX("order.test", 30, "third.order.test.")
	z.AddMX("order.test", 10, "first.order.test.")
	z.AddMX("order.test", 20, "second.order.test.")
	z.AddMX("null.test", 0, ".")
	z.AddMX("half-null.test", 0, ".")
	z.AddMX("half-null.test", 10, "mx.half-null.test.")
	z.AddMX("self.test", 10, "Relay.Test.")
	z.AddMX("backup.test", 10, "main.backup.test.")
	z.AddMX("backup.test", 20, "equal.backup.test.")
	z.AddMX("backup.test", 20, "relay.test.")
	z.AddMX("backup.test", 30, "worse.backup.test.")
	z.ServFail("servfail.test")
	z.TimeOut("timeout.test")
	for i := range 40 {
		z.AddMX("many.test", uint16(i), fmt.Sprintf("mx%02d.many.test.", i))
	}
	return z
}
