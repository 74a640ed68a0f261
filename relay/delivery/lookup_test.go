package delivery

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/smtptest"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// realResolver asks a name server as a node does.
func realResolver(server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
}

// lookupCases are what DNS can say of the addresses of a host, by kind: a fault of
// smtptest, an address, or nothing.
var lookupCases = []struct {
	name    string
	a, aaaa string
	want    string // "used", "none", or "unknown"
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

// plant has host say what a case says of it.
func plant(dns *smtptest.Resolver, host, a, aaaa string) {
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

// TestP04FamiliesAreJudgedOneByOne asks the tables and, where that takes no time, the
// real resolver.
func TestP04FamiliesAreJudgedOneByOne(t *testing.T) {
	t.Parallel()
	for _, test := range lookupCases {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var dns smtptest.Resolver
			plant(&dns, "host.test", test.a, test.aaaa)
			resolvers := map[string]Resolver{"tables": &dns}
			if !strings.Contains(test.name, "timeout") {
				resolvers["net.Resolver"] = realResolver(dns.ServeDNS(t))
			}
			for by, resolver := range resolvers {
				list, err := Addresses(t.Context(), resolver, "host.test.")
				got := "unknown"
				switch {
				case len(list) > 0:
					got = "used"
				case IsNotFound(err):
					got = "none"
				}
				if got != test.want || (err == nil) != (got == "used") {
					t.Errorf("%s: %s (%v, %v), want %s", by, got, list, err, test.want)
				}
			}
		})
	}
}

// TestP04Deliveries takes the same cases to the end, for an MX host, a domain without
// MX, and an upstream, whose mail always waits.
func TestP04Deliveries(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0"})
	for _, test := range lookupCases {
		if strings.Contains(test.aaaa, ":") && test.a != "127.0.0.2" {
			continue // IPv6 may not be had here
		}
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var dns smtptest.Resolver
			dns.AddMX("one.test", 10, "host.test.")
			plant(&dns, "host.test", test.a, test.aaaa)
			want := map[string]queue.Result{"used": queue.Delivered, "none": queue.Failed, "unknown": queue.Deferred}[test.want]
			for domain, status := range map[string]string{"one.test": "5.4.4", "host.test": "5.1.2"} {
				o := deliver(t, Config{DNS: &dns, MXPort: server.Port()}, "user@"+domain)
				if o.Result != want || want == queue.Failed && o.Reply.Enhanced.String() != status || want == queue.Deferred && o.Reply.Enhanced.String() != "4.4.3" {
					t.Errorf("%s: %s %v, want %s", domain, o.Result, o.Reply, want)
				}
			}
			up := upstreamAt(server)
			up.Host = "host.test"
			if want == queue.Failed {
				want = queue.Deferred
			}
			if o := sendVia(t, up, Config{DNS: &dns}); o.Result != want {
				t.Errorf("upstream: %s %v, want %s", o.Result, o.Reply, want)
			}
		})
	}
}

// A question that is never answered costs its own time and not the other's answer.
func TestP04NoAnswerAtAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for silent, want := range map[string]string{"A": "[2001:db8::1]", "AAAA": "[192.0.2.1]"} {
			var dns smtptest.Resolver
			dns.AddHost("host.test", "192.0.2.1", "2001:db8::1")
			dns.Stall("host.test", silent)
			d := &dialer{cfg: &Config{DNS: &dns, LookupTime: 20 * time.Second}}
			if list, err := d.addresses(t.Context(), exchanger{host: "host.test"}, upstream.Origin{}); err != nil || fmt.Sprint(list) != want {
				t.Errorf("without %s: %v, %v; want %s", silent, list, err, want)
			}
			dns.Forget("host.test")
			if list, err := d.addresses(t.Context(), exchanger{host: "host.test"}, upstream.Origin{}); err == nil || IsNotFound(err) {
				t.Errorf("without %s, and nothing else: %v, %v", silent, list, err)
			}
		}
	})
}

// TestP04MX has nothing read as "no MX" but that.
func TestP04MX(t *testing.T) {
	t.Parallel()
	for fault, plant := range map[string]func(*smtptest.Resolver, string, ...string){
		"servfail": (*smtptest.Resolver).ServFail,
		"refused":  (*smtptest.Resolver).Refuse,
		"timeout":  (*smtptest.Resolver).TimeOut,
	} {
		t.Run(fault, func(t *testing.T) {
			t.Parallel()
			var dns smtptest.Resolver
			dns.AddHost("one.test", "127.0.0.2")
			plant(&dns, "one.test", "MX")
			o := deliver(t, Config{DNS: &dns}, "user@one.test")
			if o.Result != queue.Deferred || o.Reply.Enhanced.String() != "4.4.3" {
				t.Errorf("%s %v", o.Result, o.Reply)
			}
			if n := dns.Queries("A", "one.test"); n != 0 {
				t.Errorf("the domain itself was taken for its mail host %d times", n)
			}
		})
	}
}

// Aliases in a circle are a mistake that is being made, not a name that is not there; an
// alias of nothing is.
func TestL2AliasesInACircle(t *testing.T) {
	t.Parallel()
	var dns smtptest.Resolver
	dns.AddCNAME("circle.test", "b.circle.test")
	dns.AddCNAME("b.circle.test", "circle.test")
	dns.AddMX("mx.test", 10, "circle.test.")
	dns.AddCNAME("dangling.test", "none.test")
	for by, resolver := range map[string]Resolver{"tables": &dns, "net.Resolver": realResolver(dns.ServeDNS(t))} {
		for domain, want := range map[string]queue.Result{
			"circle.test": queue.Deferred, "mx.test": queue.Deferred, "dangling.test": queue.Failed,
		} {
			o := deliver(t, Config{DNS: resolver}, "user@"+domain)
			if o.Result != want || (want == queue.Deferred) != strings.Contains(o.Reply.Text, "CNAME") {
				t.Errorf("%s, %s: %s %v, want %s", by, domain, o.Result, o.Reply, want)
			}
		}
	}
}

// Nobody listens where questions go.
func TestP04NoNameServer(t *testing.T) {
	t.Parallel()
	closed := smtptest.Start(t, smtptest.Config{})
	addr := closed.Addr()
	closed.Close()
	if o := deliver(t, Config{DNS: realResolver(addr)}, "user@one.test"); o.Result != queue.Deferred || o.Reply.Enhanced.String() != "4.4.3" {
		t.Errorf("%s %v", o.Result, o.Reply)
	}
}

// TestP04Descriptors looks up in a process of its own that may open nothing more, with
// the resolver of a Config that names none.
func TestP04Descriptors(t *testing.T) {
	if os.Getenv("POSTERN_TEST_NO_DESCRIPTORS") == "" {
		child := exec.Command(os.Args[0], "-test.run=^TestP04Descriptors$", "-test.v")
		child.Env = append(os.Environ(), "POSTERN_TEST_NO_DESCRIPTORS=1")
		out, err := child.CombinedOutput()
		if err != nil || !strings.Contains(string(out), "--- PASS: TestP04Descriptors") {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	cfg := Config{Hello: "relay.test"}.withDefaults()
	d := newDialer(&cfg)
	useUpDescriptors(t)
	if _, trouble := d.exchangers(t.Context(), "one.test"); trouble == nil || trouble.permanent || !trouble.crowded {
		t.Errorf("MX: %+v", trouble)
	}
	// TestL2Descriptors: nor is a connection that cannot be begun the destination's fault.
	if _, trouble := d.try(t.Context(), &target{host: "mx.one.test", addr: netip.MustParseAddrPort("192.0.2.1:25")}); trouble == nil || !trouble.crowded {
		t.Errorf("connection: %+v", trouble)
	}
	for _, implicit := range []string{"one.test", "mx.one.test"} {
		w := walk{d: d, domain: "one.test", hosts: []exchanger{{host: implicit}}, spent: spent{begun: time.Now()}}
		if _, trouble := w.next(t.Context()); trouble == nil || trouble.permanent || !trouble.crowded {
			t.Errorf("%s: %+v", implicit, trouble)
		}
	}
}

func useUpDescriptors(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0") // the runtime's own descriptors
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	limit := syscall.Rlimit{Cur: 64, Max: 64}
	if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	for {
		fd, err := syscall.Open(os.DevNull, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err == syscall.EMFILE {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Close(fd) })
	}
}

// A machine's own finding, without a name server, says nothing about a name.
func TestP04IsNotFound(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		err  error
		want bool
	}{
		"a server says so":          {&net.DNSError{IsNotFound: true, Server: "192.0.2.53:53"}, true},
		"DNS was not asked":         {&net.DNSError{IsNotFound: true}, false},
		"and a timeout":             {&net.DNSError{IsNotFound: true, Server: "192.0.2.53:53", IsTimeout: true}, false},
		"and temporary":             {&net.DNSError{IsNotFound: true, Server: "192.0.2.53:53", IsTemporary: true}, false},
		"cancelled":                 {context.Canceled, false},
		"none":                      {nil, false},
		"wrapped, as a server says": {fmt.Errorf("x: %w", &net.DNSError{IsNotFound: true, Server: "192.0.2.53:53"}), true},
	} {
		if got := IsNotFound(test.err); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// IPv6 is first where there is a way to it.
func TestAddressesInOrder(t *testing.T) {
	t.Parallel()
	for _, six := range []string{"::1", "2001:db8::1", "fe80::1"} {
		var dns smtptest.Resolver
		dns.AddHost("host.test", "127.0.0.1", six)
		want := "[127.0.0.1 " + six + "]"
		if hasWay(netip.MustParseAddr(six)) {
			want = "[" + six + " 127.0.0.1]"
		}
		if list, err := Addresses(t.Context(), &dns, "host.test."); err != nil || fmt.Sprint(list) != want {
			t.Errorf("%v, %v; want %s", list, err, want)
		}
	}
}

func TestIsHost(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("a", 63)
	for name, want := range map[string]bool{
		"mx.one.test": true, "mx_1.one.test": true, "MX.one.TEST": true, "localhost": true, "1.one.test": true, "xn--bcher-kva.test": true,
		long + ".test": true, strings.Join([]string{long, long, long, strings.Repeat("b", 61)}, "."): true,
		"": false, ".": false, "192.0.2.1": false, "192.0.2": false, "7": false, "2001:db8::1": false, "[192.0.2.1]": false, "a..b": false, ".a": false,
		"a b.test": false, `a\.b.test`: false, "-a.test": false, "a-.test": false, "a.test\n": false, "bücher.test": false,
		long + "a.test": false, strings.Join([]string{long, long, long, strings.Repeat("b", 62)}, "."): false,
	} {
		if got := isHost(name); got != want {
			t.Errorf("%q: %v", name, got)
		}
	}
}

// TestImpossibleMX: an MX that cannot be a host is ignored, and a domain with no other fails.
func TestImpossibleMX(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{Addr: "127.0.0.2:0"})
	for name, test := range map[string]struct {
		mx     []string
		reply  string // that fails the mail; "" when it is delivered
		quotes string
	}{
		"address":                {[]string{"192.0.2.1."}, "550 5.4.4", `"192.0.2.1."`},
		"illegal":                {[]string{"a b.test."}, "550 5.4.4", ""}, // net.Resolver leaves it out
		"addresses and illegal":  {[]string{"-.test.", "192.0.2.1."}, "550 5.4.4", ""},
		"null and address":       {[]string{".", "192.0.2.1."}, "550 5.4.4", ""},
		"null twice":             {[]string{".", "."}, "556 5.1.10", "null MX"},
		"null":                   {[]string{"."}, "556 5.1.10", "null MX"},
		"null beside a host":     {[]string{".", "mx.one.test."}, "", ""},
		"address beside a host":  {[]string{"192.0.2.1.", "mx.one.test."}, "", ""},
		"illegal beside a host":  {[]string{"a b.test.", "mx.one.test."}, "", ""},
		"null twice with a host": {[]string{".", "mx.one.test.", "."}, "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var dns smtptest.Resolver
			for i, host := range test.mx {
				dns.AddMX("one.test", uint16(i), host)
			}
			dns.AddHost("mx.one.test", "127.0.0.2")
			for by, resolver := range map[string]Resolver{"tables": &dns, "net.Resolver": realResolver(dns.ServeDNS(t))} {
				o := deliver(t, Config{DNS: resolver, MXPort: server.Port()}, "user@one.test")
				if test.reply == "" && o.Result != queue.Delivered {
					t.Errorf("%s: %s %v, want delivered", by, o.Result, o.Reply)
				}
				if test.reply != "" && (o.Result != queue.Failed || !strings.HasPrefix(o.Reply.String(), test.reply+" ") || !strings.Contains(o.Reply.Text, test.quotes)) {
					t.Errorf("%s: %s %v, want failed by %s with %s", by, o.Result, o.Reply, test.reply, test.quotes)
				}
			}
		})
	}
}

// A domain whose name can be none fails without a question.
func TestImpossibleDomain(t *testing.T) {
	t.Parallel()
	d := &dialer{cfg: &Config{DNS: &smtptest.Resolver{}, LookupTime: time.Minute}}
	for _, domain := range []string{"192.0.2.1", "a..b", strings.Repeat("a", 64) + ".test"} {
		if _, trouble := d.exchangers(t.Context(), domain); trouble == nil || !trouble.permanent || trouble.reply.Enhanced != (smtp.EnhancedCode{Class: 5, Subject: 1, Detail: 2}) {
			t.Errorf("%s: %+v", domain, trouble)
		}
	}
}
