package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/dnstest"
	"postern/internal/logtest"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/internal/serve"
	"postern/internal/smtptest"
	"postern/relay/resolver"
)

// world is a database, a name server, and a web server with the policies of domains.
type world struct {
	t    *testing.T
	db   *pgtest.DB
	dns  *dnstest.Zones
	ca   *smtptest.CA
	port int

	mu       sync.Mutex
	policies map[string]http.HandlerFunc // by domain
	certs    map[string]string           // by domain: the name of its certificate, if it is another one
	fetched  map[string]int              // by domain
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, db: pgtest.New(t), dns: &dnstest.Zones{}, ca: smtptest.NewCA(t),
		policies: map[string]http.HandlerFunc{}, certs: map[string]string{}, fetched: map[string]int{}}
	listener, err := serve.Listen("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	w.port = listener.Addr().(*net.TCPAddr).Port
	server := &http.Server{Handler: w, ErrorLog: log.New(io.Discard, "", 0), TLSConfig: &tls.Config{GetCertificate: w.certificate}}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.ServeTLS(listener, "", "")
	}()
	t.Cleanup(func() {
		_ = server.Close()
		<-ended
	})
	return w
}

func (w *world) certificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	w.mu.Lock()
	if other := w.certs[strings.TrimPrefix(name, "mta-sts.")]; other != "" {
		name = other
	}
	w.mu.Unlock()
	leaf := w.ca.Leaf(w.t, name)
	return &leaf.Certificate, nil
}

func (w *world) ServeHTTP(out http.ResponseWriter, in *http.Request) {
	host, _, _ := strings.Cut(in.Host, ":")
	domain := strings.TrimPrefix(host, "mta-sts.")
	w.mu.Lock()
	w.fetched[domain]++
	handler := w.policies[domain]
	w.mu.Unlock()
	if handler == nil || in.URL.Path != "/.well-known/mta-sts.txt" {
		http.NotFound(out, in)
		return
	}
	handler(out, in)
}

// publish has a domain publish a policy with an id.
func (w *world) publish(domain, id string, handler http.HandlerFunc) {
	w.mu.Lock()
	w.policies[domain] = handler
	w.mu.Unlock()
	w.dns.Forget("_mta-sts." + domain)
	w.dns.AddTXT("_mta-sts."+domain, "v=STSv1; id="+id+";")
	w.dns.Forget("mta-sts." + domain)
	w.dns.AddHost("mta-sts."+domain, "127.0.0.1")
}

func (w *world) fetches(domain string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.fetched[domain]
}

// text answers with a policy.
func text(mode Mode, age int, mx ...string) http.HandlerFunc {
	return body(fmt.Sprintf("version: STSv1\r\nmode: %s\r\nmx: %s\r\nmax_age: %d\r\n", mode, strings.Join(mx, "\r\nmx: "), age))
}

func body(policy string) http.HandlerFunc {
	return func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = io.WriteString(out, policy)
	}
}

// node makes a node. Its name server's answers are not kept: their TTL is 0.
func (w *world) node(name string, change ...func(*Config)) *Finder {
	dns := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53"}, Exchange: w.dns.Exchange})
	fetch := &Fetcher{Port: w.port, Roots: w.ca.Pool(), Dial: (&net.Dialer{}).DialContext, Time: time.Minute}
	fetch.Addresses = func(ctx context.Context, host string) ([]netip.Addr, error) {
		found, err := dns.Addresses(ctx, host)
		return found.List, err
	}
	cfg := Config{DB: w.db.Pool, DNS: dns, Fetch: fetch, Node: name}
	for _, c := range change {
		c(&cfg)
	}
	f := New(cfg)
	w.t.Cleanup(func() {
		if err := f.Close(context.Background()); err != nil {
			w.t.Error(err)
		}
	})
	return f
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if tag, err := w.db.Pool.Exec(w.t.Context(), sql, args...); err != nil || tag.RowsAffected() == 0 {
		w.t.Fatal(tag, err)
	}
}

// mode asks a node anew, as one that has just started.
func (w *world) mode(f *Finder, domain string) Mode {
	w.t.Helper()
	f.mu.Lock()
	clear(f.kept)
	f.mu.Unlock()
	d, err := f.Domain(w.t.Context(), domain)
	if err != nil {
		w.t.Fatal(err)
	}
	if d.STS == nil {
		return ""
	}
	return d.STS.Mode
}

func (w *world) failure(domain string) (text string) {
	w.t.Helper()
	if err := w.db.Pool.QueryRow(w.t.Context(), `select last_error from sts_policy where domain = $1`, domain).Scan(&text); err != nil {
		w.t.Fatal(err)
	}
	return text
}

// Each kind of answer of a policy host, once.
func TestPolicyHosts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	elsewhere := atomic.Int32{}
	w.publish("target.test", "1", func(http.ResponseWriter, *http.Request) { elsewhere.Add(1) })
	endless := func(out http.ResponseWriter, _ *http.Request) {
		out.Header().Set("Content-Type", "text/plain")
		_, _ = io.WriteString(out, "version: STSv1\nmode: enforce\nmx: mx.test\nmax_age: 86400\n")
		line := []byte(strings.Repeat("x", 1<<10) + "\n")
		for range 10 << 10 { // 10 MB
			if _, err := out.Write(line); err != nil {
				return
			}
		}
		t.Error("the client read 10 MB")
	}
	w.mu.Lock()
	w.certs["wrong-name.test"] = "mta-sts.other.test"
	w.mu.Unlock()
	for domain, test := range map[string]struct {
		handler http.HandlerFunc
		want    Mode
		failure string
	}{
		"enforce.test":    {text(Enforce, 86400, "mx.enforce.test"), Enforce, ""},
		"testing.test":    {text(Testing, 86400, "mx.testing.test"), Testing, ""},
		"none.test":       {body("version: STSv1\nmode: none\nmax_age: 86400\n"), None, ""},
		"wrong-name.test": {text(Enforce, 86400, "mx.test"), "", "certificate is valid for mta-sts.other.test, not mta-sts.wrong-name.test"},
		"redirect.test": {func(out http.ResponseWriter, in *http.Request) {
			http.Redirect(out, in, fmt.Sprintf("https://mta-sts.target.test:%d/.well-known/mta-sts.txt", w.port), http.StatusMovedPermanently)
		}, "", "sends elsewhere"},
		"redirect-home.test": {func(out http.ResponseWriter, in *http.Request) {
			http.Redirect(out, in, in.URL.Path, http.StatusTemporaryRedirect)
		}, "", "sends elsewhere"},
		"endless.test": {endless, "", "more than 65536 octets"},
		"html.test":    {func(out http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(out, "<html>version: STSv1") }, "", "not text/plain"},
		"gone.test":    {http.NotFound, "", "its answer is 404"},
		"created.test": {func(out http.ResponseWriter, in *http.Request) {
			out.Header().Set("Content-Type", "text/plain")
			out.WriteHeader(http.StatusCreated)
			text(Enforce, 86400, "mx.test")(out, in)
		}, "", "its answer is 201"},
		"garbage.test": {body("<html>"), "", "version"},
	} {
		t.Run(domain, func(t *testing.T) {
			t.Parallel()
			w.publish(domain, "1", test.handler)
			d, err := node.Domain(t.Context(), domain)
			if err != nil {
				t.Fatal(err)
			}
			var mode Mode
			if d.STS != nil {
				mode = d.STS.Mode
			}
			if mode != test.want {
				t.Errorf("mode %q", mode)
			}
			if got := w.failure(domain); (got == "") != (test.failure == "") || !strings.Contains(got, test.failure) {
				t.Errorf("failure %q", got)
			}
			asked := 1
			if domain == "wrong-name.test" {
				asked = 0 // the connection ends before
			}
			if _, err := node.Domain(t.Context(), domain); err != nil || w.fetches(domain) != asked {
				t.Errorf("%d fetches, %v", w.fetches(domain), err)
			}
		})
	}
	t.Cleanup(func() {
		if elsewhere.Load() != 0 {
			t.Error("a redirect was followed")
		}
	})
}

// Text of a policy host is shown and logged on one line, bounded, without terminal control codes.
func TestPolicyHostsWords(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log logtest.Lines
	node := w.node("a", func(c *Config) { c.Log = log.Logger() })
	w.publish("loud.test", "1", func(out http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(out).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "HTTP/1.1 200 OK\r\n\x1b[31m"+strings.Repeat("loud ", 1000)+"\r\n\r\n")
	})
	w.mode(node, "loud.test")
	if text := w.failure("loud.test"); !strings.Contains(text, `\x1b[31mloud`) || len(text) > 600 {
		t.Errorf("kept: %q", text)
	}
	w.publish("long.test", "1", text(Enforce, 86400, strings.Split(strings.Repeat("mx.long.test ", 500), " ")[:500]...))
	w.mode(node, "long.test")
	for _, line := range strings.Split(log.String(), "\n") {
		if len(line) > 1200 {
			t.Errorf("logged: %q", line)
		}
	}
}

// A policy host that sends an octet now and then is left when the time is over.
func TestDrip(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a", func(c *Config) { c.Fetch.Time = 200 * time.Millisecond })
	w.publish("drip.test", "1", func(out http.ResponseWriter, in *http.Request) {
		out.Header().Set("Content-Type", "text/plain")
		for in.Context().Err() == nil {
			_, _ = io.WriteString(out, "\n")
			_ = http.NewResponseController(out).Flush()
			time.Sleep(10 * time.Millisecond)
		}
	})
	if mode := w.mode(node, "drip.test"); mode != "" || !strings.Contains(w.failure("drip.test"), "deadline") {
		t.Errorf("mode %q after %q", mode, w.failure("drip.test"))
	}
}

// A wildcard whose policy hosts all hang takes some of the places for fetches, and leaves none behind.
func TestHangingOrganisation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	hanging, end := make(chan struct{}, maxFetches), make(chan struct{})
	var asking sync.WaitGroup
	for i := range maxFetches {
		domain := fmt.Sprintf("n%d.evil.test", i)
		w.publish(domain, "1", func(http.ResponseWriter, *http.Request) {
			hanging <- struct{}{}
			<-end
		})
		asking.Go(func() {
			if _, err := node.Domain(t.Context(), domain); err != nil {
				t.Error(err)
			}
		})
	}
	for range maxOfOne {
		<-hanging
	}
	w.publish("one.test", "1", text(Enforce, 86400, "mx.one.test"))
	if mode := w.mode(node, "one.test"); mode != Enforce || len(hanging) != 0 {
		t.Errorf("mode %q while %d more hosts hang", mode, len(hanging))
	}
	close(end)
	asking.Wait()
	if used, _ := node.places.Use(); used != 0 {
		t.Errorf("%d places are not given back", used)
	}
}

// A new id brings the new policy; the same one does not, and no id leaves the policy as it is.
func TestChangedID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	const domain = "one.test"
	w.publish(domain, "1", text(Testing, 86400, "mx.one.test"))
	if mode := w.mode(node, domain); mode != Testing {
		t.Fatalf("mode %q", mode)
	}
	w.publish(domain, "1", text(None, 86400, "mx.one.test"))
	if mode := w.mode(node, domain); mode != Testing || w.fetches(domain) != 1 {
		t.Errorf("the same id: mode %q after %d fetches", mode, w.fetches(domain))
	}
	w.publish(domain, "2", text(Enforce, 86400, "mx.one.test"))
	if mode := w.mode(node, domain); mode != Enforce || w.fetches(domain) != 2 {
		t.Errorf("another id: mode %q after %d fetches", mode, w.fetches(domain))
	}
	w.dns.Forget("_mta-sts." + domain)
	if mode := w.mode(node, domain); mode != Enforce || w.fetches(domain) != 2 {
		t.Errorf("no id: mode %q after %d fetches", mode, w.fetches(domain))
	}
	w.dns.ServFail("_mta-sts."+domain, "TXT")
	if mode := w.mode(node, domain); mode != Enforce {
		t.Errorf("no answer: mode %q", mode)
	}
}

// enforcing is a world with a node that keeps the policy of a domain; its host is away since, and its
// id is new.
func enforcing(t *testing.T, domain string) (*world, *Finder) {
	w := newWorld(t)
	node := w.node("a")
	w.publish(domain, "1", text(Enforce, 86400, "mx."+domain))
	w.mode(node, domain)
	w.publish(domain, "2", http.NotFound)
	return w, node
}

// While its host is away a policy holds to its end, and a new id is tried once.
func TestPolicyHostAway(t *testing.T) {
	t.Parallel()
	const domain = "one.test"
	w, node := enforcing(t, domain)
	for range 2 {
		if mode := w.mode(node, domain); mode != Enforce || w.fetches(domain) != 2 {
			t.Errorf("mode %q after %d fetches", mode, w.fetches(domain))
		}
	}
	w.exec(`update sts_policy set expires_at = clock_timestamp()`)
	if mode := w.mode(node, domain); mode != "" || w.fetches(domain) != 2 {
		t.Errorf("after its end: mode %q after %d fetches", mode, w.fetches(domain))
	}
	if kept, err := Policies(t.Context(), w.db.Pool, domain, 1); err != nil || len(kept) != 1 || kept[0].Mode != "" || !strings.Contains(kept[0].LastError, "404") {
		t.Errorf("shown: %+v, %v", kept, err)
	}
	w.exec(`update sts_policy set due_at = clock_timestamp()`)
	w.publish(domain, "2", text(Enforce, 86400, "mx.one.test"))
	if mode := w.mode(node, domain); mode != Enforce || w.fetches(domain) != 3 || w.failure(domain) != "" {
		t.Errorf("when its host is back: mode %q after %d fetches", mode, w.fetches(domain))
	}
}

// A try that fails shortly before the end of a policy does not leave the domain without one for
// longer than other tries do.
func TestFailureBeforeTheEnd(t *testing.T) {
	t.Parallel()
	const domain = "one.test"
	w, node := enforcing(t, domain)
	w.exec(`update sts_policy set expires_at = clock_timestamp() + interval '10 minutes'`)
	if mode := w.mode(node, domain); mode != Enforce || w.fetches(domain) != 2 {
		t.Errorf("mode %q after %d fetches", mode, w.fetches(domain))
	}
	w.exec(`update sts_policy set due_at = due_at where due_at <= expires_at and due_at > clock_timestamp() + interval '4 minutes'`)
}

// A policy is listed as ending when it cannot be renewed and ends soon, or has ended.
func TestEnding(t *testing.T) {
	t.Parallel()
	const domain = "one.test"
	w, node := enforcing(t, domain)
	ending := func() (mode string) {
		list, err := Ending(t.Context(), w.db.Pool, 2*24*time.Hour, 10)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range list {
			mode += k.Domain + " '" + string(k.Mode) + "' " + k.LastError
		}
		return mode
	}
	w.exec(`update sts_policy set expires_at = clock_timestamp() + interval '47 hours'`)
	if got := ending(); got != "" {
		t.Errorf("before a try that failed: %q", got)
	}
	w.mode(node, domain)
	const failure = "get the policy from mta-sts.one.test: its answer is 404"
	for at, want := range map[string]string{
		`clock_timestamp() + interval '47 hours'`: "one.test 'enforce' " + failure, `clock_timestamp()`: "one.test '' " + failure,
		`clock_timestamp() + interval '49 hours'`: "",
	} {
		w.exec(`update sts_policy set expires_at = ` + at)
		if got := ending(); got != want {
			t.Errorf("with an end at %s: %q, want %q", at, got, want)
		}
	}
	w.exec(`update sts_policy set mode = 'none', expires_at = clock_timestamp()`)
	if got := ending(); got != "" {
		t.Errorf("of mode none: %q", got)
	}
}

// A domain whose policy cannot be had is not one that has none.
func TestUnsure(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	w.publish("away.test", "1", http.NotFound)
	w.publish("kept.test", "1", text(Enforce, 86400, "mx.kept.test"))
	w.dns.ServFail("_mta-sts.silent.test", "TXT")
	for domain, want := range map[string]bool{"away.test": true, "kept.test": false, "silent.test": true, "none.test": false} {
		if d, err := node.Domain(t.Context(), domain); err != nil || d.Unsure != want {
			t.Errorf("%s: %+v, %v", domain, d, err)
		}
	}
	for domain, want := range map[string]string{"silent.test": "SERVFAIL", "none.test": "no TXT record"} {
		if err := node.Refresh(t.Context(), domain); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("refresh of %s: %v", domain, err)
		}
	}
}

// Of two nodes, in which many ask, one fetches a policy, and all wait for it.
func TestNodesFetchOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	nodes := []*Finder{w.node("a"), w.node("b")}
	const domain = "one.test"
	w.publish(domain, "1", func(out http.ResponseWriter, in *http.Request) {
		for _, node := range nodes { // both want it while it is on its way
			for flying := 0; flying == 0 && in.Context().Err() == nil; time.Sleep(time.Millisecond) {
				node.mu.Lock()
				flying = len(node.flights)
				node.mu.Unlock()
			}
		}
		text(Enforce, 86400, "mx.one.test")(out, in)
	})
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			d, err := nodes[i%2].Domain(t.Context(), domain)
			if err != nil || d.STS == nil || d.STS.Mode != Enforce {
				t.Errorf("%+v, %v", d, err)
			}
		})
	}
	all.Wait()
	if n := w.fetches(domain); n != 1 {
		t.Errorf("%d fetches", n)
	}
}

// The lease of a node that died while it fetched ends.
func TestDeadHolder(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.publish("one.test", "1", text(Enforce, 86400, "mx.one.test"))
	w.exec(`insert into sts_policy (domain, holder, lease, lease_until) values ('one.test', 'dead', 7, clock_timestamp() + interval '500 ms')`)
	if mode := w.mode(w.node("a"), "one.test"); mode != Enforce {
		t.Errorf("mode %q", mode)
	}
}

// A policy does not count if the node that fetched it has lost its lease.
func TestLostLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	lease, err := node.table.take(t.Context(), "one.test", "1", false)
	if err != nil || lease != 1 {
		t.Fatal(lease, err)
	}
	w.exec(`update sts_policy set lease_until = clock_timestamp()`)
	if lease, err = node.table.take(t.Context(), "one.test", "2", false); err != nil || lease != 2 {
		t.Fatal(lease, err)
	}
	if err := node.table.settle(t.Context(), "one.test", "1", 1, STS{Mode: None, MaxAge: time.Hour}, nil); err != nil {
		t.Fatal(err)
	}
	if r, err := node.table.read(t.Context(), "one.test"); err != nil || r.sts.Mode != "" || !r.leased {
		t.Errorf("%+v, %v", r, err)
	}
}

// Policies in use are renewed before they end; others are left to their end, and deleted after it.
func TestRenewal(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	for _, domain := range []string{"used.test", "unused.test", "new.test"} {
		w.publish(domain, "1", text(Enforce, 604800, "mx."+domain))
		w.mode(node, domain)
	}
	w.exec(`update sts_policy set due_at = clock_timestamp() where domain <> 'new.test'`)
	w.exec(`update sts_policy set used_at = clock_timestamp() - interval '31 days' where domain = 'unused.test'`)
	if err := node.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]int{"used.test": 2, "unused.test": 1, "new.test": 1} {
		if n := w.fetches(domain); n != want {
			t.Errorf("%s: %d fetches", domain, n)
		}
	}
	w.mode(node, "unused.test") // which is used again
	if err := node.renew(t.Context()); err != nil || w.fetches("unused.test") != 2 {
		t.Errorf("%d fetches, %v", w.fetches("unused.test"), err)
	}
	w.exec(`update sts_policy set due_at = clock_timestamp() where domain = 'used.test'`)
	w.publish("used.test", "1", http.NotFound)
	if err := node.renew(t.Context()); err != nil || w.mode(node, "used.test") != Enforce || w.failure("used.test") == "" {
		t.Errorf("%v, %q", err, w.failure("used.test"))
	}
	w.exec(`update sts_policy set expires_at = clock_timestamp() - interval '2 days' where domain = 'new.test'`)
	if err := node.table.prune(t.Context()); err != nil {
		t.Fatal(err)
	}
	if kept, err := Policies(t.Context(), w.db.Pool, "", 10); err != nil || len(kept) != 2 || kept[1].FailingSince == nil {
		t.Errorf("%+v, %v", kept, err)
	}
}

// An organisation with many policies that cannot be renewed does not keep others from it.
func TestRenewalIsFair(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node := w.node("a")
	w.publish("one.test", "1", text(Enforce, 604800, "mx.one.test"))
	w.mode(node, "one.test")
	w.exec(`update sts_policy set due_at = clock_timestamp()`)
	w.exec(`insert into sts_policy (domain, mode, fetched_at, expires_at, due_at)
		select 'n' || n || '.evil.test', 'enforce', t, t + interval '1 day', t - interval '1 hour' from generate_series(1, $1) n, clock_timestamp() t`, 2*maxFetches)
	if err := node.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	var tried int
	if err := w.db.Pool.QueryRow(t.Context(), `select count(*) from sts_policy where last_error <> ''`).Scan(&tried); err != nil {
		t.Fatal(err)
	}
	if n := w.fetches("one.test"); n != 2 || tried != maxOfOne {
		t.Errorf("%d fetches of the other's policy, and %d tries", n, tried)
	}
}

// An override is followed in place of all else, until it ends.
func TestOverride(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	node, ctx := w.node("a"), t.Context()
	w.publish("one.test", "1", text(Enforce, 604800, "mx.one.test"))
	set := Override{Domain: "one.test", Level: Encrypted, Reason: "their certificate expired"}
	for _, bad := range []struct {
		o    Override
		span time.Duration
	}{{Override{Domain: "one.test", Level: Matched, Reason: "x"}, time.Hour}, {Override{Domain: "one.test"}, time.Hour}, {set, time.Second}, {set, 1000 * 24 * time.Hour}} {
		if _, err := SetOverride(ctx, w.db.Pool, "root", bad.o, bad.span); err == nil {
			t.Errorf("%+v for %v was set", bad.o, bad.span)
		}
	}
	if _, err := SetOverride(ctx, w.db.Pool, "root", set, time.Hour); err != nil {
		t.Fatal(err)
	}
	d, err := node.Domain(ctx, "one.test")
	if err != nil || d.Override == nil || d.Override.Level != Encrypted || d.Override.Reason != set.Reason || w.fetches("one.test") != 0 {
		t.Fatalf("%+v, %v", d, err)
	}
	w.dns.ServFail("_25._tcp.mx.one.test", "TLSA")
	p, err := node.Host(ctx, d, "mx.one.test", true, resolver.Addresses{Secure: true, Canonical: "mx.one.test."})
	if err != nil || p.Source != SourceOverride || p.Level != Encrypted {
		t.Errorf("%v, %v", p, err)
	}
	if list, err := Overrides(ctx, w.db.Pool, "", 10); err != nil || len(list) != 1 || list[0].SetBy != "root" {
		t.Errorf("%+v, %v", list, err)
	}
	w.exec(`update transport_override set expires_at = clock_timestamp()`)
	if mode := w.mode(node, "one.test"); mode != Enforce {
		t.Errorf("after its end: mode %q", mode)
	}
	if err := ClearOverride(ctx, w.db.Pool, "root", "one.test"); err == nil {
		t.Error("an override that has ended was cleared")
	}
	if _, err := SetOverride(ctx, w.db.Pool, "root", set, time.Hour); err != nil {
		t.Fatal(err)
	}
	if err := ClearOverride(ctx, w.db.Pool, "root", "one.test"); err != nil {
		t.Error(err)
	}
	var deeds int
	if err := w.db.Pool.QueryRow(ctx, `select count(*) from audit where object = 'one.test' and action like 'transport %'`).Scan(&deeds); err != nil || deeds != 3 {
		t.Errorf("%d deeds, %v", deeds, err)
	}
}

// failing is a database that does not answer.
type failing struct {
	pg.DB
	on *atomic.Bool
}

func (f failing) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	if f.on.Load() {
		return noRow{}
	}
	return f.DB.QueryRow(ctx, sql, args...)
}

type noRow struct{}

func (noRow) Scan(...any) error { return errors.New("no connection") }

// While the database is away a policy that is known holds, and of others nothing is known.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var away atomic.Bool
	node := w.node("a", func(c *Config) { c.DB = failing{w.db.Pool, &away} })
	w.publish("one.test", "1", text(Enforce, 604800, "mx.one.test"))
	w.mode(node, "one.test")
	away.Store(true)
	node.mu.Lock()
	r := node.kept["one.test"]
	r.at = r.at.Add(-keepTime) // it is old
	node.kept["one.test"] = r
	node.mu.Unlock()
	if d, err := node.Domain(t.Context(), "one.test"); err != nil || d.STS == nil || d.STS.Mode != Enforce {
		t.Errorf("%+v, %v", d, err)
	}
	w.publish("one.test", "2", text(Testing, 604800, "mx.one.test"))
	if d, err := node.Domain(t.Context(), "one.test"); err != nil || d.STS == nil || d.STS.Mode != Enforce {
		t.Errorf("with a new id: %+v, %v", d, err)
	}
	node.mu.Lock()
	r.override, r.lifts = &Override{Domain: "one.test"}, time.Second // it has ended
	node.kept["one.test"] = r
	node.mu.Unlock()
	if d, err := node.Domain(t.Context(), "one.test"); err != nil || d.Override != nil || d.STS == nil {
		t.Errorf("after the end of an override: %+v, %v", d, err)
	}
	if d, err := node.Domain(t.Context(), "two.test"); err == nil {
		t.Errorf("%+v of a domain that nobody could look up", d)
	}
}

func TestKeptRowsAreBounded(t *testing.T) {
	t.Parallel()
	f := New(Config{})
	for i := range maxKept + 10 {
		f.keep(fmt.Sprintf("d%d.test", i), row{})
	}
	if len(f.kept) > maxKept {
		t.Errorf("%d rows", len(f.kept))
	}
}

// Where the TLSA records of a host are looked for (RFC 7672 section 2.2.2).
func TestWhereTLSARecordsAre(t *testing.T) {
	t.Parallel()
	const record = " 0 IN TLSA 3 1 1 0000000000000000000000000000000000000000000000000000000000000000"
	host := []string{"mx.signed.test. 0 IN A 192.0.2.1"}
	alias := []string{"mx.signed.test. 0 IN CNAME real.signed.test.", "real.signed.test. 0 IN A 192.0.2.1"}
	away := []string{"mx.signed.test. 0 IN CNAME real.plain.test.", "real.plain.test. 0 IN A 192.0.2.1"}
	from := []string{"mx.plain.test. 0 IN CNAME real.signed.test.", "real.signed.test. 0 IN A 192.0.2.1"}
	for _, test := range []struct {
		name    string
		host    string
		records []string
		fault   string // SERVFAIL at that name's TLSA
		base    string
		trouble bool
	}{
		{"none", "mx.signed.test", host, "", "", false},
		{"own", "mx.signed.test", append(host, "_25._tcp.mx.signed.test."+record), "", "mx.signed.test", false},
		{"SERVFAIL, or bogus", "mx.signed.test", host, "_25._tcp.mx.signed.test", "", true},
		{"zone not signed", "mx.plain.test", []string{"mx.plain.test. 0 IN A 192.0.2.1", "_25._tcp.mx.plain.test." + record}, "", "", false},
		{"zone not signed and SERVFAIL", "mx.plain.test", []string{"mx.plain.test. 0 IN A 192.0.2.1"}, "_25._tcp.mx.plain.test", "", false},
		{"alias, at its end", "mx.signed.test", append(alias, "_25._tcp.real.signed.test."+record), "", "real.signed.test", false},
		{"alias, at both", "mx.signed.test", append(alias, "_25._tcp.real.signed.test."+record, "_25._tcp.mx.signed.test."+record), "", "real.signed.test", false},
		{"alias, at its beginning", "mx.signed.test", append(alias, "_25._tcp.mx.signed.test."+record), "", "mx.signed.test", false},
		{"alias, SERVFAIL at its end", "mx.signed.test", append(alias, "_25._tcp.mx.signed.test."+record), "_25._tcp.real.signed.test", "", true},
		{"alias into a zone that is not signed", "mx.signed.test", append(away, "_25._tcp.mx.signed.test."+record, "_25._tcp.real.plain.test."+record), "", "mx.signed.test", false},
		{"alias in a zone that is not signed", "mx.plain.test", append(from, "_25._tcp.mx.plain.test."+record, "_25._tcp.real.signed.test."+record), "", "", false},
		{"the record itself an alias", "mx.signed.test", append(host, "_25._tcp.mx.signed.test. 0 IN CNAME dane.signed.test.", "dane.signed.test."+record), "", "mx.signed.test", false},
		{"the record an alias into a zone that is not signed", "mx.signed.test", append(host, "_25._tcp.mx.signed.test. 0 IN CNAME dane.plain.test.", "dane.plain.test."+record), "", "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			zones := &dnstest.Zones{}
			zones.Sign("signed.test")
			zones.Add(test.records...)
			if test.fault != "" {
				zones.ServFail(test.fault, "TLSA")
			}
			dns := resolver.New(resolver.Config{Servers: []string{"127.0.0.1:53"}, Exchange: zones.Exchange})
			f := New(Config{DNS: dns})
			addrs, err := dns.Addresses(t.Context(), test.host)
			if err != nil {
				t.Fatal(err)
			}
			base, records, err := f.tlsa(t.Context(), test.host, addrs)
			if base != test.base || (len(records) > 0) != (test.base != "") || (err != nil) != test.trouble {
				t.Errorf("%d records at %q, %v", len(records), base, err)
			}
		})
	}
}
