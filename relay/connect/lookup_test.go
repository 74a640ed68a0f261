package connect

import (
	"errors"
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

	"postern/internal/dnstest"
	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// A question that is never answered costs its own time and not the other's answer.
func TestP04NoAnswerAtAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for silent, want := range map[string]string{"A": "[2001:db8::1]", "AAAA": "[192.0.2.1]"} {
			var dns dnstest.Zones
			dns.AddHost("host.test", "192.0.2.1", "2001:db8::1")
			dns.Stall("host.test", silent)
			d := New(Config{DNS: dns.Resolver(), LookupTime: 20 * time.Second})
			if list, err := d.addresses(t.Context(), exchanger{host: "host.test"}, upstream.Origin{}); err != nil || fmt.Sprint(list) != want {
				t.Errorf("without %s: %v, %v; want %s", silent, list, err, want)
			}
			dns.Forget("host.test")
			if list, err := d.addresses(t.Context(), exchanger{host: "host.test"}, upstream.Origin{}); err == nil || errors.Is(err, resolver.ErrNone) {
				t.Errorf("without %s, and nothing else: %v, %v", silent, list, err)
			}
		}
	})
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
	cfg := Config{Hello: "relay.test"}
	d := New(cfg)
	useUpDescriptors(t)
	if _, trouble := d.exchangers(t.Context(), "one.test"); trouble == nil || trouble.Permanent || !trouble.Crowded {
		t.Errorf("MX: %+v", trouble)
	}
	// TestL2Descriptors: nor is a connection that cannot be begun the destination's fault.
	if _, trouble := d.try(t.Context(), &Target{Host: "mx.one.test", Addr: netip.MustParseAddrPort("192.0.2.1:25")}); trouble == nil || !trouble.Crowded {
		t.Errorf("connection: %+v", trouble)
	}
	for _, implicit := range []string{"one.test", "mx.one.test"} {
		w := Walk{d: d, domain: "one.test", hosts: []exchanger{{host: implicit}}, Spent: Spent{Begun: time.Now()}}
		if _, trouble := w.Next(t.Context()); trouble == nil || trouble.Permanent || !trouble.Crowded {
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

// A domain whose name can be none fails without a question.
func TestImpossibleDomain(t *testing.T) {
	t.Parallel()
	d := New(Config{DNS: new(dnstest.Zones).Resolver(), LookupTime: time.Minute})
	for _, domain := range []string{"192.0.2.1", "a..b", strings.Repeat("a", 64) + ".test"} {
		if _, trouble := d.exchangers(t.Context(), domain); trouble == nil || !trouble.Permanent || trouble.Reply.Enhanced != (smtp.EnhancedCode{Class: 5, Subject: 1, Detail: 2}) {
			t.Errorf("%s: %+v", domain, trouble)
		}
	}
}
