package resolver

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// asking is a Resolver of a machine with these files, which knows one name; asked are the names
// that it was asked for.
func asking(t *testing.T, conf, hosts, known string) (r *Resolver, asked func() string) {
	var mu sync.Mutex
	var names []string
	r = New(Config{Exchange: func(_ context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		reply := new(dns.Msg).SetReply(query)
		reply.RecursionAvailable = true
		if query.Question[0].Qtype == dns.TypeA {
			mu.Lock()
			defer mu.Unlock()
			names = append(names, query.Question[0].Name+"@"+server)
			if query.Question[0].Name == known {
				reply.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: known, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{192, 0, 2, 7}}}
			}
		}
		return reply, nil
	}})
	dir := t.TempDir()
	r.system = &system{path: filepath.Join(dir, "resolv.conf"), hosts: filepath.Join(dir, "hosts")}
	for file, text := range map[string]string{r.system.path: conf, r.system.hosts: hosts} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return r, func() string { mu.Lock(); defer mu.Unlock(); return strings.Join(names, " ") }
}

// A host that an administrator names is looked for in the hosts file and, as a single word, with
// the search list.
func TestLocal(t *testing.T) {
	t.Parallel()
	const conf = "search a.test b.test\nnameserver 192.0.2.53\n"
	for host, test := range map[string]struct{ list, asked string }{
		"mailpit":      {"[192.0.2.1 2001:db8::1]", ""},
		"smtp.x.test.": {"[192.0.2.2]", ""},
		"gate":         {"[192.0.2.7]", "gate.a.test.@192.0.2.53:53 gate.b.test.@192.0.2.53:53"},
		"gate.":        {"[]", "gate.@192.0.2.53:53"},
		"x.gate":       {"[]", "x.gate.@192.0.2.53:53"},
	} {
		r, asked := asking(t, conf, "192.0.2.1 mailpit # 192.0.2.9 gate\n2001:db8::1 other MailPit\n192.0.2.2\tsmtp.x.test\nnonsense gate\n", "gate.b.test.")
		addrs, err := r.Local(t.Context(), host)
		if fmt.Sprint(addrs.List) != test.list || addrs.Secure || asked() != test.asked || errors.Is(err, ErrNone) != (test.list == "[]") {
			t.Errorf("%s: %v after %q, %v; want %v after %q", host, addrs, asked(), err, test.list, test.asked)
		}
	}
	r, _ := asking(t, conf, "192.0.2.1 mx.test\n", "")
	if addrs, err := r.Addresses(t.Context(), "mx.test"); !errors.Is(err, ErrNone) {
		t.Errorf("the hosts file is read for an MX host: %v, %v", addrs, err)
	}
}

// Another resolv.conf is followed; one that cannot be read changes nothing, and without one the
// server is on this machine.
func TestServersOfTheMachine(t *testing.T) {
	t.Parallel()
	r, _ := asking(t, "nameserver 192.0.2.53\nnameserver 2001:db8::53\n", "", "")
	want := func(what, list string) {
		t.Helper()
		r.system.looked = time.Time{}
		if got := fmt.Sprint(r.Servers()); got != list {
			t.Errorf("%s: %s, want %s", what, got, list)
		}
	}
	const first = "[192.0.2.53:53 [2001:db8::53]:53]"
	want("at first", first)
	if err := os.Rename(r.system.path, r.system.path+"-"); err != nil {
		t.Fatal(err)
	}
	want("without the file", first)
	if err := os.WriteFile(r.system.path, []byte("nameserver 127.0.0.53\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(r.system.path, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	want("changed", "[127.0.0.53:53]")
	none := &system{path: filepath.Join(t.TempDir(), "resolv.conf")}
	if got := fmt.Sprint(none.servers()); got != "[127.0.0.1:53 [::1]:53]" {
		t.Error(got)
	}
}

// An answer takes no more memory than it counts for.
func TestSizeOfAnAnswer(t *testing.T) {
	r := New(Config{})
	for what, record := range map[string]string{
		"A": "%d.a-name-of-some-length.test. 60 IN A 192.0.2.1", "AAAA": "%d.a-name-of-some-length.test. 60 IN AAAA 2001:db8::1",
		"MX": "%d.a-name-of-some-length.test. 60 IN MX 10 a-mail-host.of-some-length.test.", "TXT": "%d.a-name-of-some-length.test. 60 IN TXT a b c",
		"long TXT": "%d.a-name-of-some-length.test. 60 IN TXT" + strings.Repeat(" a", 150),
		"TLSA":     "%d.a-name-of-some-length.test. 60 IN TLSA 3 1 1 " + strings.Repeat("ab", 32),
	} {
		for _, each := range []int{1, 200} {
			const n = 200
			c, before := newCache(), heap()
			for i := range n {
				parsed, err := dns.NewRR(fmt.Sprintf(record, i))
				if err != nil {
					t.Fatal(err)
				}
				reply := new(dns.Msg)
				reply.SetQuestion(parsed.Header().Name, parsed.Header().Rrtype).Response = true
				for range each {
					reply.Answer = append(reply.Answer, parsed)
				}
				packet, err := reply.Pack()
				if err != nil {
					t.Fatal(err)
				}
				heard := new(dns.Msg)
				if err := heard.Unpack(packet); err != nil {
					t.Fatal(err)
				}
				q := question{dns.CanonicalName(parsed.Header().Name), parsed.Header().Rrtype}
				f, err := r.read(heard, q)
				if err != nil || len(f.Records) != each {
					t.Fatalf("%d records, %v", len(f.Records), err)
				}
				c.put(q, f, time.Now())
			}
			taken := heap() - before
			t.Logf("%d %s: %d octets, counted for %d", each, what, taken/n, c.octets/n)
			if taken > c.octets {
				t.Errorf("%d %s take %d octets, and count for %d", each, what, taken/n, c.octets/n)
			}
			runtime.KeepAlive(c)
		}
	}
}

func heap() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// The cache holds no more than its bounds, and what was used last.
func TestCacheIsBounded(t *testing.T) {
	t.Parallel()
	c, now := newCache(), time.Now()
	q := func(i int) question { return question{fmt.Sprintf("d%d.test.", i), dns.TypeA} }
	for i := range maxEntries + 100 {
		c.put(q(i), found{ttl: time.Hour, size: 100}, now)
		c.get(q(0), now)
	}
	_, first := c.get(q(0), now)
	_, second := c.get(q(1), now)
	if len(c.entries) != maxEntries || c.used.Len() != maxEntries || c.octets != 100*maxEntries || !first || second {
		t.Errorf("%d entries, %d octets; %v %v", len(c.entries), c.octets, first, second)
	}
	for i := range 1000 {
		c.put(q(i), found{ttl: time.Hour, size: 60_000}, now)
	}
	if c.octets > maxOctets || len(c.entries) != c.used.Len() {
		t.Errorf("%d octets in %d entries", c.octets, len(c.entries))
	}
	c.put(q(999), found{}, now)
	if _, kept := c.get(q(999), now); kept {
		t.Error("an answer without a TTL takes no place of another")
	}
	for at := c.used.Front(); at != nil; at = c.used.Front() {
		c.remove(at)
	}
	if c.octets != 0 || len(c.entries) != 0 {
		t.Errorf("%d octets in no entry", c.octets)
	}
}
