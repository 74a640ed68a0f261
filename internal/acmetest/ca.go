package acmetest

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/core"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"

	"postern/internal/serve"
)

// Options say what kind of authority is wanted.
type Options struct {
	Validity time.Duration     // of its certificates; 0: 90 days
	OCSP     string            // URL of the OCSP responder in its certificates; "": none
	Accounts map[string]string // EAB key ids and keys (base64url); nil: accounts need none
}

// CA is a running authority.
type CA struct {
	URL string // of its directory
	DNS *DNS   // what it resolves names with

	roots   *x509.CertPool // of its own HTTPS
	rootPEM []byte
	issuing *ca.CAImpl
	store   *db.MemoryStore
	handler http.Handler
	tls     *tls.Config
	addr    string

	HTTP, TLSALPN *Front // where its validations come to

	mu     sync.Mutex
	server *http.Server // nil: down
	orders []Order
	hold   *Hold
	renew  bool
	forget bool
}

// Order is a new order that was accepted.
type Order struct {
	Replaces string // the certificate's id (RFC 9773 section 5); "": none
}

// Hold stops requests whose path begins with Path until Release.
type Hold struct {
	Path    string
	Arrived chan struct{} // closed when one is there
	release chan struct{}
	once    sync.Once
}

// Release lets them go on.
func (h *Hold) Release() { h.once.Do(func() { close(h.release) }) }

// setUp lets Pebble validate immediately and take every nonce. It reads the environment
// each time that it is made.
var setUp = sync.OnceFunc(func() {
	for _, name := range []string{"PEBBLE_VA_NOSLEEP", "PEBBLE_WFE_NONCEREJECT", "PEBBLE_AUTHZREUSE"} {
		value := "0"
		if name == "PEBBLE_VA_NOSLEEP" {
			value = "1"
		}
		_ = os.Setenv(name, value)
	}
})

// New starts an authority that ends with the test.
func New(t testing.TB, opt Options) *CA {
	t.Helper()
	setUp()
	c := &CA{HTTP: newFront(t), TLSALPN: newFront(t), DNS: NewDNS(t), store: db.NewMemoryStore()}
	if opt.Validity == 0 {
		opt.Validity = 90 * 24 * time.Hour
	}
	quiet := log.New(io.Discard, "", 0)
	keys := "ecdsa"
	if opt.OCSP != "" {
		keys = "rsa" // Pebble gives no other out, and answers are signed with one
	}
	c.issuing = ca.New(quiet, c.store, opt.OCSP, keys, 0, 1, map[string]ca.Profile{
		"default": {Description: "for tests", ValidityPeriod: uint64(opt.Validity / time.Second)},
	})
	validation := va.New(quiet, c.HTTP.port(), c.TLSALPN.port(), false, c.DNS.Addr(), c.store)
	for id, key := range opt.Accounts {
		if err := c.store.AddExternalAccountKeyByID(id, key); err != nil {
			t.Fatal(err)
		}
	}
	front := wfe.New(quiet, c.store, validation, c.issuing, []string{"acme.test"}, false, opt.Accounts != nil, 1, 1)
	c.handler = front.Handler()

	own := httptest.NewUnstartedServer(nil)
	own.StartTLS() // for its certificate
	c.tls = &tls.Config{Certificates: own.TLS.Certificates, MinVersion: tls.VersionTLS12}
	c.rootPEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate().Raw})
	c.roots = x509.NewCertPool()
	c.roots.AddCert(own.Certificate())
	own.Close()

	port, err := serve.FreePort() // one that nobody else gets while it is down
	if err != nil {
		t.Fatal(err)
	}
	c.addr = fmt.Sprintf("127.0.0.1:%d", port)
	c.Up(t)
	c.URL = "https://" + c.addr + wfe.DirectoryPath
	t.Cleanup(func() {
		c.mu.Lock()
		hold := c.hold
		c.mu.Unlock()
		if hold != nil {
			hold.Release()
		}
		c.Down()
	})
	return c
}

// Up lets it answer, where it did before.
func (c *CA) Up(t testing.TB) {
	t.Helper()
	ln, err := net.Listen("tcp", c.addr)
	if err != nil {
		t.Fatal(err)
	}
	c.addr = ln.Addr().String()
	server := &http.Server{Handler: http.HandlerFunc(c.serve), ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0)}
	c.mu.Lock()
	c.server = server
	c.mu.Unlock()
	go func() { _ = server.Serve(tls.NewListener(ln, c.tls)) }()
}

// Down refuses connections and ends those that there are.
func (c *CA) Down() {
	c.mu.Lock()
	server := c.server
	c.server = nil
	c.mu.Unlock()
	if server != nil {
		_ = server.Close()
	}
}

// HoldAt holds requests to what Pebble calls path, as "/finalize-order/".
func (c *CA) HoldAt(path string) *Hold {
	h := &Hold{Path: path, Arrived: make(chan struct{}), release: make(chan struct{})}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.hold = h
	return h
}

// RenewNow lets renewal information (ARI) say of every certificate that its time has come.
func (c *CA) RenewNow(on bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.renew = on
}

// Forget lets it refuse each order that names a certificate to be replaced, as one that
// has lost its list of them does.
func (c *CA) Forget() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.forget = true
}

// Orders are those that were accepted.
func (c *CA) Orders() []Order {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Order(nil), c.orders...)
}

// Roots is what trusts the authority's own HTTPS.
func (c *CA) Roots() *x509.CertPool { return c.roots }

// WriteRoots writes them as PEM.
func (c *CA) WriteRoots(t testing.TB, dir string) string {
	t.Helper()
	file := filepath.Join(dir, "acme-ca.pem")
	if err := os.WriteFile(file, c.rootPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// Issued is what trusts the certificates that it issues.
func (c *CA) Issued(t testing.TB) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(c.issuing.GetRootCert(0).PEM()) {
		t.Fatal("the authority has no root")
	}
	return pool
}

func (c *CA) serve(w http.ResponseWriter, r *http.Request) {
	c.mu.Lock()
	hold, renew, forget := c.hold, c.renew, c.forget
	c.mu.Unlock()
	if hold != nil && strings.HasPrefix(r.URL.Path, hold.Path) {
		select {
		case <-hold.Arrived:
		default:
			close(hold.Arrived)
		}
		<-hold.release
	}
	if renew && strings.Contains(r.URL.Path, "/renewalInfo/") && r.Method == http.MethodGet {
		now := time.Now().UTC()
		w.Header().Set("Retry-After", "21600")
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(map[string]any{"suggestedWindow": map[string]time.Time{
			"start": now.Add(-2 * time.Hour), "end": now.Add(-time.Hour)}})
		return
	}
	if r.URL.Path != "/order-plz" {
		c.handler.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	order := orderIn(body)
	if forget && order.Replaces != "" {
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusInternalServerError)
		_, _ = io.WriteString(w, `{"type":"urn:ietf:params:acme:error:serverInternal","detail":"no order for the given certificate"}`)
		return
	}
	c.know(order.Replaces)
	seen := &statusWriter{ResponseWriter: w}
	c.handler.ServeHTTP(seen, r)
	if seen.status == http.StatusCreated {
		c.mu.Lock()
		c.orders = append(c.orders, order)
		c.mu.Unlock()
	}
}

// know lets Pebble find the certificate that an order replaces. It keeps them by their
// serial number without the leading zero that DER puts before some, one in 256.
func (c *CA) know(replaces string) {
	_, encoded, _ := strings.Cut(replaces, ".")
	serial, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil || len(serial) < 2 || serial[0] != 0 {
		return
	}
	original, err := c.store.GetOrderByIssuedSerial(hex.EncodeToString(serial[1:]))
	if err != nil {
		return
	}
	_ = c.store.AddOrderByIssuedSerial(&core.Order{ // fails without a certificate only
		Order: original.Order, AccountID: original.AccountID,
		CertificateObject: &core.Certificate{ID: hex.EncodeToString(serial)},
	})
}

type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

// orderIn reads an order out of its signed envelope.
func orderIn(body []byte) (o Order) {
	var envelope struct{ Payload string }
	if json.Unmarshal(body, &envelope) == nil {
		payload, _ := base64.RawURLEncoding.DecodeString(envelope.Payload)
		_ = json.Unmarshal(payload, &o) // what is no order has no fields of one
	}
	return o
}
