package resolver_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"

	"postern/internal/dnstest"
	"postern/relay/resolver"
)

// The AD bit counts if all servers are trusted, and this one has proved that it validates.
func TestAuthenticDataIsBelieved(t *testing.T) {
	t.Parallel()
	const here, docker, away = "127.0.0.1:53", "127.0.0.11:53", "192.0.2.53:53"
	for what, test := range map[string]struct {
		servers []string
		trusted bool
		change  func(*dnstest.Zones)
		want    bool
	}{
		"on this machine":         {[]string{here}, false, nil, true},
		"by IPv6":                 {[]string{"[::1]:53"}, false, nil, true},
		"elsewhere":               {[]string{away}, false, nil, false},
		"elsewhere, trusted":      {[]string{away}, true, nil, true},
		"Docker":                  {[]string{docker}, false, nil, false},
		"beside one elsewhere":    {[]string{here, away}, false, nil, false},
		"answers for a bad name":  {[]string{here}, false, (*dnstest.Zones).Blind, false},
		"refuses the root":        {[]string{here}, false, func(z *dnstest.Zones) { z.Refuse(".") }, false},
		"no AD for the root":      {[]string{here}, false, func(z *dnstest.Zones) { z.Set(".", "NS a.test."); z.Sign() }, false},
		"the bad name is unknown": {[]string{here}, false, func(z *dnstest.Zones) { z.TimeOut(resolver.Bogus) }, true},
	} {
		var z dnstest.Zones
		z.AddHost("one.test", "127.0.0.1")
		z.Sign("one.test")
		if test.change != nil {
			test.change(&z)
		}
		r := resolver.New(resolver.Config{Servers: test.servers, Trusted: test.trusted, Exchange: z.Exchange})
		a, err := r.Lookup(t.Context(), "one.test", dns.TypeA)
		if err != nil || a.Secure != test.want {
			t.Errorf("%s: secure %v, %v", what, a.Secure, err)
		}
		none, err := r.Lookup(t.Context(), "none.one.test", dns.TypeTLSA)
		if !errors.Is(err, resolver.ErrNone) || none.Secure != test.want {
			t.Errorf("%s: none, secure %v, %v", what, none.Secure, err)
		}
		if v := r.Stats().Validates; v != test.want && len(test.servers) == 1 {
			t.Errorf("%s: validates %v", what, v)
		}
	}
}

// While it is not known whether a server validates, an answer with AD is an error: neither believed
// nor taken for insecure. An answer without AD is insecure.
func TestNoProofIsTemporary(t *testing.T) {
	t.Parallel()
	var z dnstest.Zones
	z.AddHost("one.test", "127.0.0.1")
	z.AddHost("plain.test", "127.0.0.1")
	z.Sign("one.test")
	r := z.Resolver()
	for what, fail := range map[string]func(string, ...string){"no answer": z.TimeOut, "SERVFAIL": z.ServFail} {
		fail(".")
		if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err == nil || errors.Is(err, resolver.ErrNone) {
			t.Errorf("%s: %+v, %v", what, a, err)
		}
	}
	if a, err := r.Lookup(t.Context(), "plain.test", dns.TypeA); err != nil || a.Secure {
		t.Errorf("%+v, %v", a, err)
	}
	z.Mend(".")
	if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err != nil || !a.Secure {
		t.Errorf("%+v, %v", a, err)
	}
}

// All that wait for the proof of a server which keeps its root zone to itself wait as long as one: not
// one after the other.
func TestNoProofForAll(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var z dnstest.Zones
		z.AddHost("one.test", "127.0.0.1")
		z.Sign("one.test")
		z.Stall(".")
		r, began := z.Resolver(), time.Now()
		var all sync.WaitGroup
		for range 10 {
			all.Go(func() {
				if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err == nil || errors.Is(err, resolver.ErrNone) {
					t.Errorf("%+v, %v", a, err)
				}
			})
		}
		all.Wait()
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("the last of them waited %v", took)
		}
	})
}

// The log names a server that stops validating within a minute, without any mail, and once; answers in
// memory are no longer secure. Once it validates again it is believed within a minute.
func TestWatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var z dnstest.Zones
		z.Add("one.test. 86400 IN A 127.0.0.1")
		z.Sign("one.test")
		var log bytes.Buffer
		r := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53"}, Exchange: z.Exchange, Log: slog.New(slog.NewTextHandler(&log, nil))})
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Watch(ctx); close(ended) }()
		errors := func() int { synctest.Wait(); return strings.Count(log.String(), "level=ERROR") }
		if n := errors(); n != 0 || !r.Stats().Validates {
			t.Errorf("%d errors, %+v", n, r.Stats())
		}
		time.Sleep(30 * time.Minute)
		if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err != nil || !a.Secure {
			t.Errorf("%+v, %v", a, err)
		}
		z.Blind()
		time.Sleep(2 * time.Minute)
		if n := errors(); n != 1 || r.Stats().Validates || r.Stats().Blind != 1 {
			t.Errorf("%d errors, %+v", n, r.Stats())
		}
		if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err != nil || a.Secure {
			t.Errorf("%+v, %v", a, err)
		}
		z.Forget(resolver.Bogus)
		time.Sleep(2 * time.Minute)
		if n := errors(); n != 1 || !r.Stats().Validates {
			t.Errorf("%d errors, %+v", n, r.Stats())
		}
		cancel()
		<-ended
	})
}

// A trusted server that stops validating has lapsed, one that is not trusted has not. After it
// validates again its former answers are not used.
func TestLapsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var z dnstest.Zones
		z.Add("one.test. 86400 IN A 127.0.0.1", "two.test. 86400 IN A 127.0.0.1")
		r := z.Resolver()
		beside := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53", "192.0.2.53:53"}, Exchange: z.Exchange})
		for _, step := range []struct {
			what, name     string
			change         func()
			lapsed, secure bool
		}{
			{"validates", "one.test", func() { z.Sign(".") }, false, true},
			{"validates no more", "two.test", func() { z.Sign() }, true, false},
			{"is mended", "two.test", func() { z.Sign(".") }, false, true},
			{"is silent", "one.test", func() { z.TimeOut(".") }, true, true},
		} {
			before := time.Now()
			step.change()
			time.Sleep(2 * time.Minute)
			if r.Lapsed(t.Context(), time.Now()) != step.lapsed || beside.Lapsed(t.Context(), before) {
				t.Errorf("%s: lapsed %v", step.what, !step.lapsed)
			}
			if r.Lapsed(t.Context(), before) != (step.what != "validates") {
				t.Errorf("%s: lapsed %v since before", step.what, step.what == "validates")
			}
			if a, err := r.Lookup(t.Context(), step.name, dns.TypeA); err != nil || a.Secure != step.secure {
				t.Errorf("%s: %+v, %v", step.what, a, err)
			}
		}
	})
}
