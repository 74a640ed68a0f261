package resolver

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/miekg/dns"
)

// signedBy answers as servers that validate, each with its own address for all names.
func signedBy(addrs map[string]string) func(context.Context, string, *dns.Msg) (*dns.Msg, error) {
	return func(_ context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
		reply := new(dns.Msg).SetReply(query)
		reply.RecursionAvailable, reply.AuthenticatedData = true, true
		q := query.Question[0]
		switch {
		case q.Name == Bogus:
			reply.Rcode = dns.RcodeServerFailure
		case q.Qtype == dns.TypeA:
			record, err := dns.NewRR(q.Name + " 3600 IN A " + addrs[server])
			if err != nil {
				return nil, err
			}
			reply.Answer = []dns.RR{record}
		}
		return reply, nil
	}
}

// Answers of servers are not used after others have taken their place: they were not believed, and
// would be now.
func TestFormerServers(t *testing.T) {
	t.Parallel()
	r, _ := asking(t, "nameserver 192.0.2.53\n", "", "")
	r.cfg.Exchange = signedBy(map[string]string{"192.0.2.53:53": "192.0.2.1", "127.0.0.53:53": "192.0.2.2"})
	later := time.Now()
	look := func(address string, secure bool) {
		t.Helper()
		a, err := r.Lookup(t.Context(), "one.test", dns.TypeA)
		if err != nil || a.Secure != secure || Of[*dns.A](a)[0].A.String() != address {
			t.Errorf("%+v, %v; want %s, secure %v", a, err, address, secure)
		}
	}
	change := func(content string) {
		t.Helper()
		if err := os.WriteFile(r.system.path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		later = later.Add(time.Hour)
		if err := os.Chtimes(r.system.path, time.Time{}, later); err != nil {
			t.Fatal(err)
		}
		r.system.looked = time.Time{}
	}
	before := time.Now()
	look("192.0.2.1", false)
	if r.Lapsed(t.Context(), before) {
		t.Error("a server that was never believed has lapsed")
	}
	late := r.begin(t.Context(), question{"one.test.", dns.TypeA})
	<-late.landed
	change("nameserver 127.0.0.53\n")
	if a, err := r.await(t.Context(), late); err != nil || a.Secure {
		t.Errorf("an answer that was on its way: %+v, %v", a, err)
	}
	if !r.Lapsed(t.Context(), before) || r.Lapsed(t.Context(), time.Now()) {
		t.Error("it is not known that answers of before are not secure")
	}
	look("192.0.2.2", true)
	change("nameserver 192.0.2.53\n")
	if !r.Lapsed(t.Context(), time.Now()) {
		t.Error("a server that is not trusted, in the place of one that validated, has not lapsed")
	}
	look("192.0.2.1", false)
}

// An answer that was on its way while its server began to validate is not kept.
func TestAnswerOnItsWay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		validates, slow := false, make(chan struct{})
		signed := signedBy(map[string]string{"127.0.0.1:53": "192.0.2.1"})
		r := New(Config{Servers: []string{"127.0.0.1:53"}, Exchange: func(ctx context.Context, server string, query *dns.Msg) (*dns.Msg, error) {
			reply, err := signed(ctx, server, query)
			reply.AuthenticatedData = validates
			if !validates && query.Question[0].Qtype == dns.TypeA {
				<-slow
			}
			return reply, err
		}})
		if v, _ := r.Validation(t.Context(), "127.0.0.1:53"); v != Blind {
			t.Fatalf("validation %v", v)
		}
		first := r.begin(t.Context(), question{"one.test.", dns.TypeA})
		synctest.Wait()
		validates = true
		time.Sleep(2 * faultTime)
		if v, err := r.Validation(t.Context(), "127.0.0.1:53"); v != Validates {
			t.Fatalf("validation %v, %v", v, err)
		}
		close(slow)
		if a, err := r.await(t.Context(), first); err != nil || a.Secure {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := r.Lookup(t.Context(), "one.test", dns.TypeA); err != nil || !a.Secure {
			t.Errorf("the next one: %+v, %v", a, err)
		}
	})
}

// The log names a server that is not believed when it takes the place of another, once.
func TestWatchFollowsServers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, _ := asking(t, "nameserver 127.0.0.53\n", "", "")
		r.cfg.Exchange = signedBy(nil)
		var log bytes.Buffer
		r.cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { r.Watch(ctx); close(ended) }()
		for _, step := range []struct {
			server string
			want   int
		}{{"127.0.0.53", 0}, {"192.0.2.53", 1}, {"192.0.2.53", 1}, {"127.0.0.53", 1}, {"192.0.2.53", 2}} {
			if err := os.WriteFile(r.system.path, []byte("nameserver "+step.server+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chtimes(r.system.path, time.Time{}, time.Now()); err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * faultTime)
			synctest.Wait()
			if n := strings.Count(log.String(), "192.0.2.53:53"); n != step.want {
				t.Errorf("%s: the log names it %d times, want %d:\n%s", step.server, n, step.want, log.String())
			}
		}
		cancel()
		<-ended
	})
}
