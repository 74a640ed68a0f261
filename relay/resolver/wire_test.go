package resolver_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/relay/resolver"
)

// An answer that is cut off over UDP comes over TCP, whole.
func TestTCPWhereUDPIsCutOff(t *testing.T) {
	t.Parallel()
	var z dnstest.Zones
	for i := range 60 {
		z.AddMX("many.test", uint16(i), fmt.Sprintf("a-long-name-of-a-mail-host-%d.many.test", i))
	}
	z.AddMX("one.test", 10, "mx.one.test")
	r := dnstest.At(z.Serve(t))
	for domain, want := range map[string]struct{ hosts, questions int }{"many.test": {60, 2}, "one.test": {1, 1}} {
		if list, _, err := r.MX(t.Context(), domain); err != nil || len(list) != want.hosts || z.Queries("MX", domain) != want.questions {
			t.Errorf("%s: %d hosts after %d questions, %v; want %+v", domain, len(list), z.Queries("MX", domain), err, want)
		}
	}
}

// The query asks for DNSSEC data and no more than fits a packet; a server that knows nothing of it
// is asked without.
func TestEDNS(t *testing.T) {
	t.Parallel()
	var asked []string
	var z dnstest.Zones
	z.AddMX("one.test", 10, "mx.one.test")
	z.Sign("one.test")
	old := false
	r := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		if opt := query.IsEdns0(); opt != nil {
			asked = append(asked, fmt.Sprint(opt.UDPSize(), opt.Do(), query.RecursionDesired, query.AuthenticatedData, query.CheckingDisabled))
			if old {
				return new(dns.Msg).SetRcode(query, dns.RcodeFormatError), nil
			}
		} else {
			asked = append(asked, "plain")
		}
		return z.Exchange(ctx, server, query)
	})
	const modern = "1232 true true false false"
	if _, secure, err := r.MX(t.Context(), "one.test"); err != nil || !secure || strings.Join(asked, ", ") != strings.Repeat(modern+", ", 2)+modern {
		t.Errorf("secure %v, %v, asked %q", secure, err, asked)
	}
	old, asked = true, nil
	if _, _, err := r.MX(t.Context(), "one.test"); err != nil || strings.Join(asked, ", ") != modern+", plain" {
		t.Errorf("%v, asked %q", err, asked)
	}
}

// A reply that does not answer the question is an error of this question.
func TestForeignReplies(t *testing.T) {
	t.Parallel()
	var z dnstest.Zones
	z.AddHost("one.test", "127.0.0.1")
	z.AddHost("two.test", "127.0.0.2")
	for what, spoil := range map[string]func(*dns.Msg){
		"another name":  func(m *dns.Msg) { m.Question[0].Name = "two.test." },
		"another type":  func(m *dns.Msg) { m.Question[0].Qtype = dns.TypeMX },
		"no question":   func(m *dns.Msg) { m.Question = nil },
		"a query":       func(m *dns.Msg) { m.Response = false },
		"not recursive": func(m *dns.Msg) { m.RecursionAvailable, m.Answer = false, nil },
		"a referral": func(m *dns.Msg) {
			m.RecursionAvailable, m.Answer = false, nil
			m.Ns = []dns.RR{&dns.NS{Hdr: dns.RR_Header{Name: "test.", Rrtype: dns.TypeNS, Class: dns.ClassINET}, Ns: "ns.test."}}
		},
		"cut off": func(m *dns.Msg) { m.Truncated, m.Answer = true, nil },
		"NOTIMP":  func(m *dns.Msg) { m.Rcode = dns.RcodeNotImplemented },
	} {
		r := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
			reply, err := z.Exchange(ctx, server, query)
			spoil(reply)
			return reply, err
		})
		if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err == nil || errors.Is(err, resolver.ErrNone) {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
	r := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		reply, err := z.Exchange(ctx, server, query)
		reply.Answer = append(reply.Answer, &dns.A{Hdr: dns.RR_Header{Name: "two.test.", Rrtype: dns.TypeA, Class: dns.ClassINET}, A: []byte{127, 0, 0, 9}})
		return reply, err
	})
	if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err != nil || len(a.Records) != 1 {
		t.Errorf("with a record of another name: %+v, %v", a, err)
	}
}

// The next server is asked where one fails; one that refuses is not asked again, one that is silent
// is, once.
func TestServersInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var good, bad dnstest.Zones
		good.AddHost("one.test", "127.0.0.1")
		bad.ServFail("one.test")
		bad.Stall("two.test")
		good.ServFail("two.test")
		bad.TimeOut("three.test")
		bad.TimeOut("three.test")
		good.TimeOut("three.test")
		r := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53", "127.0.0.2:53"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
			if server == "127.0.0.1:53" {
				return bad.Exchange(ctx, server, query)
			}
			return good.Exchange(ctx, server, query)
		}})
		began := time.Now()
		if addrs, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err != nil || len(addrs.Records) != 1 || time.Since(began) != 0 {
			t.Errorf("after SERVFAIL: %+v, %v in %v", addrs, err, time.Since(began))
		}
		if _, err := r.Lookup(t.Context(), "two.test", dns.TypeA); err == nil || errors.Is(err, resolver.ErrNone) || time.Since(began) != 10*time.Second || bad.Queries("A", "two.test") != 2 || good.Queries("A", "two.test") != 1 {
			t.Errorf("silent and SERVFAIL: %v in %v, %d and %d times", err, time.Since(began), bad.Queries("A", "two.test"), good.Queries("A", "two.test"))
		}
		if _, err := r.Lookup(t.Context(), "three.test", dns.TypeA); err == nil || bad.Queries("A", "three.test") != 2 || good.Queries("A", "three.test") != 2 {
			t.Errorf("both silent: %v, %d and %d times", err, bad.Queries("A", "three.test"), good.Queries("A", "three.test"))
		}
	})
}

// Answers are kept for their TTL, "no such record" for that of the zone, and errors not at all.
func TestCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var z dnstest.Zones
		z.Add("one.test. 60 IN A 127.0.0.1", "alias.test. 10 IN CNAME one.test.", "never.test. 0 IN A 127.0.0.1", "ever.test. 604800 IN A 127.0.0.1",
			"soa.test. 3600 IN SOA ns.soa.test. admin.soa.test. 1 3600 600 86400 30", "long.test. 3600 IN SOA ns.long.test. admin.long.test. 1 3600 600 86400 3600")
		z.ServFail("broken.test")
		r := z.Resolver()
		for name, want := range map[string]time.Duration{
			"one.test": time.Minute, "alias.test": 10 * time.Second, "never.test": 0, "ever.test": time.Hour,
			"a.soa.test": 30 * time.Second, "a.long.test": 5 * time.Minute, "none.test": 0, "broken.test": 0,
		} {
			ask := func() int { _, _ = r.Lookup(t.Context(), name, dns.TypeA); return z.Queries("A", name) }
			first := ask()
			if want > 0 {
				time.Sleep(want - time.Second)
				if n := ask(); n != first {
					t.Errorf("%s is asked for again within %v", name, want)
				}
				time.Sleep(2 * time.Second)
			}
			if n := ask(); n == first {
				t.Errorf("%s is kept for more than %v", name, want)
			}
		}
	})
}

// The same question is asked once for all callers, and a caller that gives up does not end it for the
// others.
func TestOneFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var asked, ended atomic.Int64
		answer := make(chan struct{})
		var z dnstest.Zones
		z.AddHost("one.test", "127.0.0.1")
		r := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
			asked.Add(1)
			defer ended.Add(1)
			select {
			case <-answer:
				return z.Exchange(ctx, server, query)
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		})
		impatient, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		var found atomic.Int64
		for i := range 10 {
			ctx := t.Context()
			if i == 0 {
				ctx = impatient
			}
			all.Go(func() {
				if a, err := r.Lookup(ctx, "one.test", dns.TypeA); err == nil && len(a.Records) == 1 {
					found.Add(1)
				}
			})
			synctest.Wait()
		}
		cancel()
		synctest.Wait()
		close(answer)
		all.Wait()
		if asked.Load() != 1 || found.Load() != 9 {
			t.Errorf("asked %d times, found by %d", asked.Load(), found.Load())
		}
		// Nobody is left: the question ends.
		answer = make(chan struct{})
		ctx, cancel := context.WithCancel(t.Context())
		all.Go(func() { _, _ = r.Lookup(ctx, "one.test", dns.TypeA) })
		synctest.Wait()
		cancel()
		all.Wait()
		synctest.Wait()
		if asked.Load() != 2 || ended.Load() != 2 {
			t.Errorf("%d of %d questions ended", ended.Load(), asked.Load())
		}
	})
}

// A defect in what reads replies is an error of the question.
func TestPanicIsTemporary(t *testing.T) {
	t.Parallel()
	r := dnstest.By(func(context.Context, string, *dns.Msg) (*dns.Msg, error) { panic("a defect") })
	if _, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err == nil || errors.Is(err, resolver.ErrNone) {
		t.Error(err)
	}
}

// One server, asked directly, says what its zones have, and nothing of other zones.
func TestAt(t *testing.T) {
	t.Parallel()
	var z dnstest.Zones
	z.AddTXT("key.one.test", "v=DKIM1; ", "p=abc")
	z.AddCNAME("there.one.test", "key.else.test")
	z.Sign("one.test")
	authoritative := true
	r := dnstest.By(func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		reply, err := z.Exchange(ctx, server, query)
		reply.RecursionAvailable, reply.Authoritative = false, authoritative
		if query.RecursionDesired || server != "192.0.2.53:53" {
			t.Errorf("%s is asked with recursion %v", server, query.RecursionDesired)
		}
		return reply, err
	}).At("192.0.2.53:53")
	if texts, err := r.TXT(t.Context(), "key.one.test"); err != nil || len(texts) != 1 || texts[0] != "v=DKIM1; p=abc" {
		t.Errorf("%q, %v", texts, err)
	}
	if _, err := r.TXT(t.Context(), "none.one.test"); !errors.Is(err, resolver.ErrNone) {
		t.Error(err)
	}
	if a, err := r.Lookup(t.Context(), "there.one.test", dns.TypeTXT); !errors.Is(err, resolver.ErrElsewhere) || a.Canonical != "key.else.test." || a.Secure {
		t.Errorf("%+v, %v", a, err)
	}
	authoritative = false
	if _, err := r.TXT(t.Context(), "none.one.test"); err == nil || errors.Is(err, resolver.ErrNone) {
		t.Error(err)
	}
}

// The authoritative servers of a name are those of the zone that it is in.
func TestAuthorities(t *testing.T) {
	t.Parallel()
	var z dnstest.Zones
	z.Add("one.test. 60 IN NS ns1.one.test.", "one.test. 60 IN NS ns2.else.test.", "ns1.one.test. 60 IN A 192.0.2.1", "key.a.one.test. 60 IN TXT x")
	z.ServFail("ns2.else.test")
	z.ServFail("broken.test", "NS")
	servers, err := z.Resolver().Authorities(t.Context(), "key.a.one.test")
	if err != nil || fmt.Sprint(servers) != "map[ns1.one.test.:[192.0.2.1] ns2.else.test.:[]]" {
		t.Errorf("%v, %v", servers, err)
	}
	for name, none := range map[string]bool{"a.none.test": true, "a.broken.test": false} {
		if servers, err := z.Resolver().Authorities(t.Context(), name); err == nil || errors.Is(err, resolver.ErrNone) != none {
			t.Errorf("%s: %v, %v", name, servers, err)
		}
	}
}

// A server's own words about a failure (RFC 8914) are told, and not all of a whole reply of them.
func TestExtendedErrors(t *testing.T) {
	t.Parallel()
	r := dnstest.By(func(_ context.Context, _ string, query *dns.Msg) (*dns.Msg, error) {
		reply := new(dns.Msg).SetRcode(query, dns.RcodeServerFailure)
		reply.SetEdns0(1232, true)
		why := &dns.EDNS0_EDE{InfoCode: dns.ExtendedErrorCodeDNSBogus, ExtraText: "its key is gone" + strings.Repeat(".", 60_000)}
		reply.IsEdns0().Option = append(reply.IsEdns0().Option, why)
		return reply, nil
	})
	_, err := r.Lookup(t.Context(), "one.test", dns.TypeA)
	if err == nil || !strings.Contains(err.Error(), "SERVFAIL (DNSSEC Bogus: its key is gone...") || len(err.Error()) > 400 {
		t.Errorf("%.500v", err)
	}
}
