package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"

	"postern/internal/acmetest"
	"postern/internal/logtest"
	"postern/internal/pgtest"
	"postern/relay/certificate"
)

// fakeClock stands still until the test moves it.
type fakeClock struct {
	mu      sync.Mutex
	now     time.Time
	waiting map[chan time.Time]time.Time
	changed chan struct{}
}

func newFakeClock() *fakeClock {
	return &fakeClock{now: time.Now(), waiting: map[chan time.Time]time.Time{}, changed: make(chan struct{})}
}

func (c *fakeClock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	ch := make(chan time.Time, 1)
	c.waiting[ch] = c.now.Add(d)
	close(c.changed)
	c.changed = make(chan struct{})
	return ch
}

// idle waits until n wait for the clock: all passes are over.
func (c *fakeClock) idle(t *testing.T, n int) {
	t.Helper()
	deadline := time.After(patience)
	for {
		c.mu.Lock()
		waiting, changed := len(c.waiting), c.changed
		c.mu.Unlock()
		if waiting == n {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("%d wait for the clock, want %d", waiting, n)
		}
	}
}

// advance moves the clock and ends the waits that are over.
func (c *fakeClock) advance(d time.Duration) (woken int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	for ch, at := range c.waiting {
		if !at.After(c.now) {
			delete(c.waiting, ch)
			ch <- c.now
			woken++
		}
	}
	return woken
}

// next moves the clock to the end of the shortest wait.
func (c *fakeClock) next() time.Duration {
	c.mu.Lock()
	var least time.Duration = -1
	for _, at := range c.waiting {
		if d := at.Sub(c.now); least < 0 || d < least {
			least = d
		}
	}
	c.mu.Unlock()
	c.advance(least)
	return least
}

// node is a keeper with a listener that shows its certificates.
type node struct {
	*Keeper
	t    *testing.T
	set  *certificate.Set
	addr string
	log  *logtest.Lines
}

// host is the name that the test orders for, and no other: certmagic remembers in the
// process which name is validated how.
func host(t *testing.T) string { return strings.ToLower(t.Name()) + ".test" }

// startNode makes a node whose validations come to it alone.
func startNode(t *testing.T, db *pgtest.DB, ca *acmetest.CA, change ...func(*Config)) *node {
	t.Helper()
	n := &node{t: t, log: &logtest.Lines{}}
	cfg := Config{
		Names: []string{host(t)}, Email: "admin@mail.test", Directory: ca.URL, Roots: ca.Roots(),
		Challenge: HTTP01, HTTPAddress: "127.0.0.1:0", TLSALPNAddress: "127.0.0.1:0",
		Node: "one", Pool: db.Pool, Sealer: newSealer(t, 1), Log: n.log.Logger(), lookEvery: 50 * time.Millisecond,
	}
	for _, c := range change {
		c(&cfg)
	}
	var err error
	if n.Keeper, err = NewKeeper(cfg); err != nil {
		t.Fatal(err)
	}
	n.storage.pollEvery = 20 * time.Millisecond
	ca.HTTP.To(n.ChallengeAddress)
	ca.TLSALPN.To(n.ChallengeAddress)
	if n.set, err = certificate.Open(certificate.Config{Hostname: host(t)}); err != nil {
		t.Fatal(err)
	}
	n.set.Use(n.Keeper)
	n.listen()
	must(t, n.Start(t.Context()))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			t.Logf("node %s said:\n%s", cfg.Node, n.log)
		}
	})
	return n
}

func (n *node) listen() {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{GetCertificate: n.set.GetCertificate, MinVersion: tls.VersionTLS12})
	must(n.t, err)
	n.t.Cleanup(func() { _ = ln.Close() })
	n.addr = ln.Addr().String()
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				_ = conn.(*tls.Conn).Handshake()
				_ = conn.Close()
			}()
		}
	}()
}

// handshake is a client's; roots nil trusts anything.
func (n *node) handshake(name string, roots *x509.CertPool) (*x509.Certificate, error) {
	conn, err := tls.Dial("tcp", n.addr, &tls.Config{ServerName: name, RootCAs: roots, InsecureSkipVerify: roots == nil})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0], nil
}

// trusted waits until a client that trusts the authority gets through with a
// certificate other than not.
func (n *node) trusted(name string, roots *x509.CertPool, not *x509.Certificate) *x509.Certificate {
	n.t.Helper()
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var leaf *x509.Certificate
		if leaf, err = n.handshake(name, roots); err == nil && (not == nil || !leaf.Equal(not)) {
			return leaf
		}
	}
	n.t.Fatalf("no such certificate for %s: %v", name, err)
	return nil
}

func (n *node) status(name string) certificate.Status {
	n.t.Helper()
	for _, s := range n.set.Status() {
		if s.Name == name {
			return s
		}
	}
	n.t.Fatalf("no status of %s", name)
	return certificate.Status{}
}

func (n *node) awaitStatus(name, what string, ok func(certificate.Status) bool) certificate.Status {
	n.t.Helper()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if s := n.status(name); ok(s) {
			return s
		}
	}
	n.t.Fatalf("%s: not %s: %+v", name, what, n.status(name))
	return certificate.Status{}
}

func records(t *testing.T, db *pgtest.DB) map[string]Record {
	t.Helper()
	list, err := List(t.Context(), db.Pool)
	must(t, err)
	byName := map[string]Record{}
	for _, r := range list {
		byName[r.Name] = r
	}
	return byName
}

// TestFirstIssue: a stand-in until the authority has issued; then one certificate
// for each name, chosen by SNI, and the hostname's without.
func TestFirstIssue(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	hold := ca.HoldAt("/order-plz")
	n := startNode(t, db, ca, func(c *Config) { c.Names = []string{"other." + host(t), strings.ToUpper(host(t))} })
	arrives(t, hold.Arrived)
	leaf, err := n.handshake(host(t), nil)
	if err != nil || leaf.Subject.CommonName != "Postern, self-signed" {
		t.Fatalf("before the first is issued: %v, %v", leaf, err)
	}
	if s := n.status(host(t)); !s.StandIn || valid(s) {
		t.Errorf("status of a stand-in: %+v", s)
	}
	if !strings.Contains(n.log.String(), "no certificate yet") {
		t.Error("nobody is told of the stand-in")
	}
	hold.Release()

	roots := ca.Issued(t)
	n.trusted(host(t), roots, nil)
	n.trusted("other."+host(t), roots, nil)
	leaf, err = n.handshake("", nil)
	if err != nil || leaf.DNSNames[0] != host(t) {
		t.Errorf("without SNI: %v, %v", leaf.DNSNames, err)
	}
	s := n.awaitStatus(host(t), "valid", func(s certificate.Status) bool { return !s.LastSuccess.IsZero() })
	if s.StandIn || s.Error != "" || !valid(s) || !strings.Contains(s.Issuer, "Pebble") || !strings.HasPrefix(s.Source, "acme 127.0.0.1") {
		t.Errorf("status: %+v", s)
	}
	if got := len(ca.Orders()); got != 2 {
		t.Errorf("%d orders for two names", got)
	}
	var r Record
	for deadline := time.Now().Add(patience); r.NotAfter.IsZero() && time.Now().Before(deadline); {
		r = records(t, db)[host(t)]
	}
	if r.State(time.Now()) != "valid" || r.Node != "one" || r.Serial == "" || r.RenewedAt.IsZero() {
		t.Errorf("record: %+v", r)
	}
}

func arrives(t *testing.T, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal("it never came")
	}
}

// TestStrangers: the standing port answers validations of our names, and nothing else.
func TestStrangers(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	n := startNode(t, db, ca)
	for _, host := range []string{host(t), "evil.test", ""} {
		for _, path := range []string{"/", "/.well-known/acme-challenge/x", "/.well-known/acme-challenge/"} {
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+n.ChallengeAddress()+path, nil)
			must(t, err)
			req.Host = host
			resp, err := http.DefaultTransport.RoundTrip(req)
			must(t, err)
			body, _ := io.ReadAll(resp.Body)
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s%s: %s %q", host, path, resp.Status, body)
			}
		}
	}
}

// TestOneOrder: nodes that start together share one certificate, and one of them orders.
func TestOneOrder(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	hold := ca.HoldAt("/order-plz")
	var nodes []*node
	for i := range 3 {
		nodes = append(nodes, startNode(t, db, ca, func(c *Config) { c.Node = fmt.Sprint("node", i) }))
	}
	arrives(t, hold.Arrived)
	hold.Release()
	serials := map[string]bool{}
	for _, n := range nodes {
		serials[n.trusted(host(t), ca.Issued(t), nil).SerialNumber.String()] = true
	}
	if len(serials) != 1 || len(ca.Orders()) != 1 {
		t.Errorf("%d certificates, %d orders", len(serials), len(ca.Orders()))
	}
}

// TestRenewal: a certificate that is due in seconds is replaced, and every handshake
// meanwhile gets a valid one.
func TestRenewal(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{Validity: 2 * patience})
	n := startNode(t, db, ca, func(c *Config) { c.renewWindow = 0.98 })
	roots := ca.Issued(t)
	first := n.trusted(host(t), roots, nil)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		leaf, err := n.handshake(host(t), roots)
		if err != nil {
			t.Fatalf("a handshake in between: %v", err)
		}
		if !leaf.Equal(first) {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is not renewed")
		}
	}
	if r := records(t, db)[host(t)]; r.Failures != 0 {
		t.Errorf("record: %+v", r)
	}
}

// TestRenewalInformation: the authority says when (ARI), and hears which certificate
// the new one replaces.
func TestRenewalInformation(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	ca.RenewNow(true)
	n := startNode(t, db, ca, func(c *Config) { c.clock = clock })
	clock.idle(t, 1)
	first := n.trusted(host(t), ca.Issued(t), nil)
	ca.RenewNow(false)
	clock.next()
	clock.idle(t, 1)
	second := n.trusted(host(t), ca.Issued(t), first)
	orders := ca.Orders()
	if len(orders) != 2 || orders[0].Replaces != "" || orders[1].Replaces == "" {
		t.Errorf("orders: %+v", orders)
	}
	clock.next()
	clock.idle(t, 1)
	n.trusted(host(t), ca.Issued(t), first)
	if leaf, _ := n.handshake(host(t), nil); !leaf.Equal(second) || len(ca.Orders()) != 2 {
		t.Errorf("renewed again: %d orders", len(ca.Orders()))
	}
}

// TestForgottenCertificate: an authority that refuses each order that names the
// certificate to be replaced still renews it, at the second attempt.
func TestForgottenCertificate(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	n := startNode(t, db, ca, func(c *Config) { c.clock, c.lookEvery = clock, 10*time.Minute })
	clock.idle(t, 1)
	first := n.trusted(host(t), ca.Issued(t), nil)
	ca.Forget()
	ca.RenewNow(true)
	if known, err := AskRenewal(t.Context(), db.Pool, host(t), "root"); !known || err != nil {
		t.Fatal(known, err)
	}
	for at := time.Duration(0); at < 15*time.Minute; {
		at += clock.next()
		clock.idle(t, 1)
	}
	n.trusted(host(t), ca.Issued(t), first)
	if orders := ca.Orders(); len(orders) < 2 || orders[1].Replaces != "" {
		t.Errorf("orders: %+v", orders)
	}
}

// TestOutage: the authority is away for an hour when the certificate must be renewed.
// Handshakes go on, the status tells since when, both nodes together wait longer
// and longer, and afterwards it is renewed by one order.
func TestOutage(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	config := func(name string) func(*Config) {
		return func(c *Config) { c.clock, c.Node, c.lookEvery = clock, name, 10*time.Minute }
	}
	ca.RenewNow(true) // the first one is due at the next look
	hold := ca.HoldAt("/order-plz")
	one, two := startNode(t, db, ca, config("one")), startNode(t, db, ca, config("two"))
	arrives(t, hold.Arrived)
	one.awaitLog("acquiring lock")
	two.awaitLog("acquiring lock")
	hold.Release()
	clock.idle(t, 2)
	roots := ca.Issued(t)
	first := one.trusted(host(t), roots, nil)
	two.trusted(host(t), roots, nil)

	ca.Down()
	down := clock.Now()
	for hour := time.Duration(0); hour < time.Hour; {
		hour += clock.next()
		clock.idle(t, 2)
		for _, n := range []*node{one, two} {
			if leaf, err := n.handshake(host(t), roots); err != nil || !leaf.Equal(first) {
				t.Fatalf("after %s of the outage: %v", hour, err)
			}
		}
	}
	r := records(t, db)[host(t)]
	// The sixth may be made just when the hour is over.
	if r.Failures < 4 || r.Failures > 6 || r.State(time.Now()) != "renewal failing" || r.LastError == "" {
		t.Errorf("record in the outage, of two nodes: %+v", r)
	}
	for _, n := range []*node{one, two} {
		s := n.status(host(t))
		if s.Error == "" || s.FailingSince.Before(down) || s.FailingSince.After(down.Add(15*time.Minute)) ||
			!s.NextTry.After(clock.Now()) || s.StandIn || !valid(s) {
			t.Errorf("status in the outage: %+v", s)
		}
	}

	ca.Up(t)
	ca.RenewNow(false)
	for range 20 {
		clock.next()
		clock.idle(t, 2)
	}
	second := one.trusted(host(t), roots, first)
	if leaf := two.trusted(host(t), roots, first); !leaf.Equal(second) || len(ca.Orders()) != 2 {
		t.Errorf("after the outage: one certificate: %t, %d orders", leaf.Equal(second), len(ca.Orders()))
	}
	for _, n := range []*node{one, two} {
		if s := n.status(host(t)); s.Error != "" || !s.FailingSince.IsZero() {
			t.Errorf("status after the outage: %+v", s)
		}
	}
	if r := records(t, db)[host(t)]; r.Failures != 0 || r.LastError != "" || !r.NextTry.IsZero() {
		t.Errorf("record after the outage: %+v", r)
	}
}

// awaitLog waits until the node has said something.
func (n *node) awaitLog(text string) {
	n.t.Helper()
	for deadline := time.Now().Add(patience); !strings.Contains(n.log.String(), text); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			n.t.Fatalf("the node did not say %q", text)
		}
	}
}

// TestNotStored: an authority that issues while the database takes nothing is not asked
// again immediately, for it counts what it issues.
func TestNotStored(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	if _, err := db.Pool.Exec(t.Context(), "alter table certificate_store add constraint full_disk check (key not like 'certificates/%')"); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, db, ca, func(c *Config) { c.clock, c.lookEvery = clock, 10*time.Minute })
	clock.idle(t, 1)
	for at := time.Duration(0); at < 45*time.Second; {
		at += clock.next()
		clock.idle(t, 1)
	}
	if got := len(ca.Orders()); got != 1 {
		t.Errorf("%d orders within a minute", got)
	}
	if s := n.status(host(t)); !strings.Contains(s.Error, "full_disk") || !s.NextTry.After(clock.Now()) || !s.StandIn {
		t.Errorf("status: %+v", s)
	}
	_, err := db.Pool.Exec(t.Context(), "alter table certificate_store drop constraint full_disk")
	must(t, err)
	clock.advance(time.Minute)
	clock.idle(t, 1)
	n.trusted(host(t), ca.Issued(t), nil)
	if s := n.status(host(t)); s.Error != "" || len(ca.Orders()) != 2 {
		t.Errorf("afterwards: %+v, %d orders", s, len(ca.Orders()))
	}
}

// TestFirstIssueFails: two nodes that get no certificate serve with a stand-in, tell
// so, and make one attempt together.
func TestFirstIssueFails(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	ca.Down()
	config := func(name string) func(*Config) {
		return func(c *Config) { c.clock, c.Node, c.lookEvery = clock, name, 10*time.Minute }
	}
	one, two := startNode(t, db, ca, config("one")), startNode(t, db, ca, config("two"))
	clock.idle(t, 2)
	if r := records(t, db)[host(t)]; r.Failures != 1 || r.State(time.Now()) != "failing" {
		t.Errorf("record: %+v", r)
	}
	for _, n := range []*node{one, two} {
		if _, err := n.handshake(host(t), nil); err != nil {
			t.Errorf("no stand-in: %v", err)
		}
		s := n.status(host(t))
		if !s.StandIn || s.Error == "" || s.FailingSince.IsZero() || !s.NextTry.Equal(clock.Now().Add(time.Minute).Truncate(time.Microsecond)) {
			t.Errorf("status: %+v at %s", s, clock.Now())
		}
	}
	ca.Up(t)
	for range 10 {
		clock.next()
		clock.idle(t, 2)
	}
	one.trusted(host(t), ca.Issued(t), nil)
	two.trusted(host(t), ca.Issued(t), nil)
	if len(ca.Orders()) != 1 {
		t.Errorf("%d orders", len(ca.Orders()))
	}
}

// TestRestartInOutage: a node that starts while the authority is away shows what the
// database has.
func TestRestartInOutage(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	first := startNode(t, db, ca).trusted(host(t), ca.Issued(t), nil)
	ca.Down()
	n := startNode(t, db, ca, func(c *Config) { c.Node = "two" })
	if leaf, err := n.handshake(host(t), ca.Issued(t)); err != nil || !leaf.Equal(first) {
		t.Errorf("its first handshake: %v", err)
	}
}

// TestAnotherAuthority: a new directory that does not answer takes nothing away.
func TestAnotherAuthority(t *testing.T) {
	t.Parallel()
	db, ca, other := pgtest.New(t), acmetest.New(t, acmetest.Options{}), acmetest.New(t, acmetest.Options{})
	first := startNode(t, db, ca).trusted(host(t), ca.Issued(t), nil)
	other.Down()
	n := startNode(t, db, other, func(c *Config) { c.Node = "two" })
	if leaf, err := n.handshake(host(t), ca.Issued(t)); err != nil || !leaf.Equal(first) {
		t.Errorf("with a new authority that is away: %v", err)
	}
	n.awaitStatus(host(t), "failing", func(s certificate.Status) bool { return s.Error != "" && !s.StandIn })

	other.Up(t)
	other.HTTP.To(n.ChallengeAddress)
	must(t, n.set.Reload())
	known, err := AskRenewal(t.Context(), db.Pool, host(t), "root") // it need not wait
	if !known || err != nil {
		t.Fatal(known, err)
	}
	must(t, n.set.Reload())
	second := n.trusted(host(t), other.Issued(t), nil)
	must(t, n.adopt(t.Context(), host(t)))
	if leaf, err := n.handshake(host(t), other.Issued(t)); err != nil || !leaf.Equal(second) {
		t.Errorf("it went back to the one before: %v", err)
	}
}

// TestDatabaseAway: handshakes need no database, and the status says what is wrong.
func TestDatabaseAway(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	n := startNode(t, db, ca)
	n.trusted(host(t), ca.Issued(t), nil)
	db.Pool.Close()
	n.awaitStatus(host(t), "failing", func(s certificate.Status) bool { return strings.Contains(s.Error, "closed pool") })
	if _, err := n.handshake(host(t), ca.Issued(t)); err != nil {
		t.Errorf("without a database: %v", err)
	}
	must(t, n.set.Reload()) // files can be read again, and all else of a configuration
}

// TestCrowd: who holds all connections of the standing port, for as long as it likes,
// does not keep the authority from validating.
func TestCrowd(t *testing.T) {
	t.Parallel()
	for _, challenge := range []Challenge{HTTP01, TLSALPN01} {
		t.Run(strings.ReplaceAll(string(challenge), "-", ""), func(t *testing.T) {
			t.Parallel()
			db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
			name := strings.ReplaceAll(host(t), "/", "-")
			hold := ca.HoldAt("/order-plz")
			n := startNode(t, db, ca, func(c *Config) { c.Names, c.Challenge, c.validationTime = []string{name}, challenge, time.Hour })
			arrives(t, hold.Arrived)
			dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
			for range 2 * validations {
				conn, err := dialer.DialContext(t.Context(), "tcp", n.ChallengeAddress())
				must(t, err)
				t.Cleanup(func() { _ = conn.Close() })
			}
			hold.Release()
			n.trusted(name, ca.Issued(t), nil)
		})
	}
}

// TestStrangersAreQuiet: who knocks at the port of the validations fills no log.
func TestStrangersAreQuiet(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	n := startNode(t, db, ca, func(c *Config) { c.Challenge = TLSALPN01 })
	n.trusted(host(t), ca.Issued(t), nil)
	if _, err := tls.Dial("tcp", n.ChallengeAddress(), &tls.Config{
		ServerName: host(t), NextProtos: []string{acmez.ACMETLS1Protocol}, InsecureSkipVerify: true}); err == nil {
		t.Error("a stranger got a certificate")
	}
	n.awaitLog("tls-alpn challenge")
	for line := range strings.Lines(n.log.String()) {
		if strings.Contains(line, "tls-alpn challenge") && !strings.Contains(line, `"level":"DEBUG"`) {
			t.Error(line)
		}
	}
}

// TestWrongClock: a failure that a node told of whose clock is a year ahead keeps the
// others from nothing.
func TestWrongClock(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	ahead := newFakeClock()
	ahead.advance(365 * 24 * time.Hour)
	ca.Down()
	startNode(t, db, ca, func(c *Config) { c.clock = ahead })
	ahead.idle(t, 1)
	if r := records(t, db)[host(t)]; r.Failures != 1 || time.Until(r.NextTry) < 360*24*time.Hour {
		t.Fatalf("record: %+v", r)
	}
	ca.Up(t)
	startNode(t, db, ca, func(c *Config) { c.Node = "two" }).trusted(host(t), ca.Issued(t), nil)
}

// TestClockApart: a node whose clock says that a new certificate has long expired does
// not order one after the other. It shows what others have got.
func TestClockApart(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	first := startNode(t, db, ca).trusted(host(t), ca.Issued(t), nil)
	for _, off := range []time.Duration{365 * 24 * time.Hour, -2 * time.Hour} {
		log := &logtest.Lines{}
		k, err := NewKeeper(Config{
			Names: []string{host(t)}, Email: "admin@mail.test", Directory: ca.URL, Roots: ca.Roots(), Challenge: HTTP01,
			HTTPAddress: "127.0.0.1:0", Node: "two", Pool: db.Pool, Sealer: newSealer(t, 1), Log: log.Logger(),
		})
		must(t, err)
		k.storage.now = func() time.Time { return time.Now().Add(off) }
		k.pass(t.Context(), host(t))
		if s := k.statusOf(host(t)); !strings.Contains(s.Error, "clocks") || s.StandIn || !k.kept(host(t)).cert.Leaf.Equal(first) {
			t.Errorf("off by %s: %+v\n%s", off, s, log)
		}
		must(t, k.Close(t.Context()))
	}
}

// TestPlain: what an authority says is one line, and no page.
func TestPlain(t *testing.T) {
	t.Parallel()
	got := plain(errors.New("HTTP 503:\n <html>" + strings.Repeat("\n<p>away</p>", 1<<18)))
	if !strings.HasPrefix(got, "HTTP 503: <html> <p>") || len(got) > 2100 || strings.Contains(got, "\n") {
		t.Errorf("%d octets: %.100q", len(got), got)
	}
}

func TestTLSALPN01(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	n := startNode(t, db, ca, func(c *Config) { c.Challenge = TLSALPN01 })
	n.trusted(host(t), ca.Issued(t), nil)
	if _, err := tls.Dial("tcp", n.ChallengeAddress(), &tls.Config{ServerName: host(t), InsecureSkipVerify: true}); err == nil {
		t.Error("the port of the validations serves a client")
	}
}

func TestDNS01(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	n := startNode(t, db, ca, func(c *Config) {
		c.Challenge, c.Names = DNS01, []string{host(t), "*.relay." + host(t)}
		c.DNS = provider(ca.DNS)
	})
	n.trusted(host(t), ca.Issued(t), nil)
	n.trusted("any.relay."+host(t), ca.Issued(t), nil)
	for deadline := time.Now().Add(patience); ; time.Sleep(10 * time.Millisecond) {
		made, refused := ca.DNS.Updates()
		left := append(ca.DNS.Texts("_acme-challenge."+host(t)), ca.DNS.Texts("_acme-challenge.relay."+host(t))...)
		if made == 4 && refused == 0 && len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d updates, %d refused, left %q", made, refused, left)
		}
	}
}

// TestDefect: a panic costs a round for one name, and is told.
func TestDefect(t *testing.T) {
	t.Parallel()
	var log logtest.Lines
	k, err := NewKeeper(Config{
		Names: []string{host(t)}, Email: "admin@mail.test", Directory: "https://127.0.0.1:1/dir", Challenge: HTTP01, HTTPAddress: "127.0.0.1:0",
		Node: "one", Pool: pgtest.New(t).Pool, Sealer: newSealer(t, 1), Log: log.Logger(),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close(t.Context())
	k.storage = nil
	k.work(t.Context(), host(t))
	if got := k.Status()[0]; !strings.HasPrefix(got.Error, "a defect: ") || got.FailingSince.IsZero() || got.NextTry.IsZero() {
		t.Errorf("status %+v", got)
	}
	if log.Count("certificate check panicked") != 1 || log.Count("keeper_test.go") == 0 {
		t.Errorf("logged:\n%s", log.String())
	}
}

// TestOCSP: a responder that is away or never answers keeps no certificate from use.
func TestOCSP(t *testing.T) {
	t.Parallel()
	asked, release := make(chan struct{}, 100), make(chan struct{})
	mute := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		asked <- struct{}{}
		<-release
	}))
	defer mute.Close()
	defer close(release)
	for name, url := range map[string]string{"away": "http://127.0.0.1:1/", "mute": mute.URL} {
		ca := acmetest.New(t, acmetest.Options{OCSP: url})
		n := startNode(t, pgtest.New(t), ca)
		if name == "mute" {
			arrives(t, asked)
		}
		if leaf := n.trusted(host(t), ca.Issued(t), nil); len(leaf.OCSPServer) != 1 {
			t.Errorf("%s: the certificate names the responders %q", name, leaf.OCSPServer)
		}
	}
}

// TestRevoked: what the authority has revoked is ordered anew, by one of the nodes.
func TestRevoked(t *testing.T) {
	t.Parallel()
	responder := httptest.NewUnstartedServer(nil)
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{OCSP: "http://" + responder.Listener.Addr().String()})
	var once sync.Once
	var bad *big.Int // the first that it is asked about
	asked := make(chan struct{})
	responder.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ca.ServeOCSP(w, r, func(serial *big.Int) bool {
			once.Do(func() { bad = serial; close(asked) })
			return bad.Cmp(serial) == 0
		})
	})
	responder.Start()
	defer responder.Close()
	nodes := []*node{startNode(t, db, ca), startNode(t, db, ca, func(c *Config) { c.Node = "two" })}
	arrives(t, asked)
	for _, n := range nodes {
		leaf := n.trusted(host(t), ca.Issued(t), nil)
		if leaf.SerialNumber.Cmp(bad) == 0 {
			n.trusted(host(t), ca.Issued(t), leaf)
		}
	}
	if n := len(ca.Orders()); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
}

// TestAnotherKey: a node that cannot open what the others have sealed says so, and
// orders nothing that would take its place.
func TestAnotherKey(t *testing.T) {
	t.Parallel()
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{})
	startNode(t, db, ca).trusted(host(t), ca.Issued(t), nil)
	k, err := NewKeeper(Config{
		Names: []string{host(t)}, Email: "admin@mail.test", Directory: ca.URL, Roots: ca.Roots(),
		Challenge: HTTP01, HTTPAddress: "127.0.0.1:0", Node: "two", Pool: db.Pool, Sealer: newSealer(t, 2),
	})
	must(t, err)
	defer k.Close(t.Context())
	if err := k.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "secret_key_file") {
		t.Errorf("with another key: %v", err)
	}
	if n := len(ca.Orders()); n != 1 {
		t.Errorf("%d orders", n)
	}
}

// TestAskedRenewal: an admin need not wait for the time of a certificate; of several
// nodes one orders.
func TestAskedRenewal(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	config := func(name string) func(*Config) {
		return func(c *Config) { c.clock, c.Node = clock, name }
	}
	one, two := startNode(t, db, ca, config("one")), startNode(t, db, ca, config("two"))
	clock.idle(t, 2)
	first := one.trusted(host(t), ca.Issued(t), nil)
	if known, err := AskRenewal(t.Context(), db.Pool, "other.test", "root"); known || err != nil {
		t.Errorf("a name that nobody knows: %t, %v", known, err)
	}
	if known, err := AskRenewal(t.Context(), db.Pool, strings.ToUpper(host(t)), "root"); !known || err != nil {
		t.Fatal(known, err)
	}
	if r := records(t, db)[host(t)]; r.State(time.Now()) != "renewal asked" {
		t.Errorf("record: %+v", r)
	}
	for range 3 {
		clock.next()
		clock.idle(t, 2)
	}
	second := one.trusted(host(t), ca.Issued(t), first)
	if leaf := two.trusted(host(t), ca.Issued(t), first); !leaf.Equal(second) || len(ca.Orders()) != 2 {
		t.Errorf("%d orders", len(ca.Orders()))
	}
	if bytes.Equal(first.RawSubjectPublicKeyInfo, second.RawSubjectPublicKeyInfo) {
		t.Error("the key is the same")
	}
	if r := records(t, db)[host(t)]; r.State(time.Now()) != "valid" || r.Serial != second.SerialNumber.Text(16) {
		t.Errorf("record: %+v", r)
	}
	for _, n := range []*node{one, two} {
		if s := n.status(host(t)); s.Error != "" {
			t.Errorf("status: %+v", s)
		}
	}
}

// TestAskedRenewalAtOnce: a reload does not wait for the next look.
func TestAskedRenewalAtOnce(t *testing.T) {
	t.Parallel()
	db, ca, clock := pgtest.New(t), acmetest.New(t, acmetest.Options{}), newFakeClock()
	n := startNode(t, db, ca, func(c *Config) { c.clock = clock })
	clock.idle(t, 1)
	first := n.trusted(host(t), ca.Issued(t), nil)
	if known, err := AskRenewal(t.Context(), db.Pool, host(t), "root"); !known || err != nil {
		t.Fatal(known, err)
	}
	must(t, n.set.Reload())
	n.trusted(host(t), ca.Issued(t), first) // the clock stands still
}

// TestAccountBinding: an authority that wants an account of its own gets told of it.
func TestAccountBinding(t *testing.T) {
	t.Parallel()
	const key = "cG9zdGVybi1wb3N0ZXJuLXBvc3Rlcm4tcG9zdGVybiE"
	db, ca := pgtest.New(t), acmetest.New(t, acmetest.Options{Accounts: map[string]string{"kid": key}})
	n := startNode(t, db, ca, func(c *Config) { c.EABKeyID, c.EABKey = "kid", key })
	n.trusted(host(t), ca.Issued(t), nil)
}

// TestPortTaken: a port that cannot be opened is a clear error at the start.
func TestPortTaken(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	for _, challenge := range []Challenge{HTTP01, TLSALPN01} {
		_, err = NewKeeper(Config{Names: []string{host(t)}, Email: "a@mail.test", Challenge: challenge,
			HTTPAddress: ln.Addr().String(), TLSALPNAddress: ln.Addr().String(), Sealer: newSealer(t, 1)})
		if err == nil || !strings.Contains(err.Error(), ln.Addr().String()) || !strings.Contains(err.Error(), string(challenge)) {
			t.Errorf("%s: %v", challenge, err)
		}
	}
}

func TestDelay(t *testing.T) {
	t.Parallel()
	var at time.Duration
	within := 1
	for failures := 1; failures < 20; failures++ {
		if at += delay(failures); at < time.Hour {
			within++
		}
	}
	if within != 5 || delay(100) != time.Hour || delay(0) != time.Minute {
		t.Errorf("%d attempts in the first hour", within)
	}
}
