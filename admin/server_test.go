package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"postern/admin/health"
	"postern/internal/leaktest"
	"postern/internal/logtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

const token = "0123456789abcdef0123"

// open starts a server that ends with the test, on a loopback address when it has none.
func open(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Address == "" {
		cfg.Address = "127.0.0.1:0"
	}
	s := New(cfg)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := s.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// client keeps no connection, so that none is left for goleak.
var client = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}

// ask makes a request with an Authorization field, unless that is "".
func ask(t *testing.T, s *Server, method, path, authorization string) (status int, head http.Header, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://"+s.Addr()+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(text)
}

// registry has one metric of its own.
func registry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	Register(r, nil, func() int { return 7 }, []Reading[int]{{Name: "test_seven", Help: "Seven.", Value: func(n int) float64 { return float64(n) }}})
	return r
}

func well(name string) Check {
	return Check{name, func(context.Context) health.Finding { return health.Finding{Status: health.OK, Text: "secret detail"} }}
}

func ill(name string) Check {
	return Check{name, func(context.Context) health.Finding {
		return health.Finding{Status: health.Failed, Text: "secret detail", Todo: "do this"}
	}}
}

func TestPages(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Registry: registry(), Checks: []Check{well("one")}})
	for _, tc := range []struct {
		method, path string
		status       int
		body         string // in it
	}{
		{"GET", "/healthz", 200, "ok\n"},
		{"HEAD", "/healthz", 200, ""},
		{"GET", "/readyz", 200, `"ready": true`},
		{"GET", "/metrics", 200, "test_seven 7\n"},
		{"POST", "/metrics", 405, "Method Not Allowed"},
		{"PUT", "/healthz", 405, ""},
		{"DELETE", "/readyz", 405, ""},
		{"GET", "/", 404, "404 page not found\n"},
		{"GET", "/metrics/", 404, ""},
		{"GET", "/debug/pprof/", 404, ""},
		{"GET", "/debug/pprof/heap", 404, ""},
	} {
		status, head, body := ask(t, s, tc.method, tc.path, "")
		if status != tc.status || !strings.Contains(body, tc.body) {
			t.Errorf("%s %s: %d %q, want %d %q", tc.method, tc.path, status, body, tc.status, tc.body)
		}
		if head.Get("Cache-Control") != "no-store" || head.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s %s: head %v", tc.method, tc.path, head)
		}
	}
}

func TestToken(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Token: token, Pprof: true, Registry: registry(), Checks: []Check{well("one"), ill("two")}})
	for _, page := range []string{"/metrics", "/debug/pprof/", "/debug/pprof/heap", "/debug/pprof/cmdline"} {
		for _, bad := range []string{"", "Bearer", "Bearer ", "Bearer " + token[1:], "Bearer " + token + "x", "Basic " + token, token} {
			status, head, body := ask(t, s, "GET", page, bad)
			if status != 401 || !strings.HasPrefix(head.Get("WWW-Authenticate"), "Bearer") || strings.Contains(body, "test_seven") {
				t.Errorf("%s with %q: %d %q", page, bad, status, body)
			}
		}
		if status, _, _ := ask(t, s, "GET", page, "Bearer "+token); status != 200 {
			t.Errorf("%s with the token: %d", page, status)
		}
	}
	if status, _, _ := ask(t, s, "GET", "/healthz", ""); status != 200 {
		t.Errorf("/healthz is not open: %d", status)
	}
	status, _, bare := ask(t, s, "GET", "/readyz", "")
	if status != 503 || strings.Contains(bare, "secret detail") || strings.Contains(bare, "do this") || !strings.Contains(bare, `"two"`) {
		t.Errorf("/readyz without the token: %d %s", status, bare)
	}
	if _, _, whole := ask(t, s, "GET", "/readyz", "bearer "+token); !strings.Contains(whole, "secret detail") || !strings.Contains(whole, "do this") {
		t.Errorf("/readyz with the token: %s", whole)
	}
}

func TestReadToken(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	for text, good := range map[string]bool{token + "\n": true, " " + token + " ": true, "": false, "short": false, token + " " + token: false} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := ReadToken(file, nil)
		if (err == nil) != good || good && got != token {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := ReadToken(file+"x", nil); err == nil {
		t.Error("a file that is not there has a token")
	}
}

// A token that everybody may change is none; one that everybody may read is told.
func TestL2TokenOfEverybody(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte(token), 0o600); err != nil {
		t.Fatal(err)
	}
	for mode, want := range map[os.FileMode]string{0o666: "refused", 0o622: "refused", 0o644: "told", 0o640: ""} {
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
		got, said := "", ""
		_, err := ReadToken(file, func(err error) { got, said = "told", err.Error() })
		if err != nil {
			got, said = "refused", err.Error()
		}
		if got != want || want != "" && !strings.Contains(said, file+": mode 0"+strconv.FormatInt(int64(mode), 8)+" lets everybody") {
			t.Errorf("mode %o: %q by %q, want %q", mode, got, said, want)
		}
	}
}

// A web page elsewhere whose name was made to lead here is answered nothing.
func TestL2HostsOfOthers(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Registry: registry(), Checks: []Check{well("one")}, Pprof: true, Hosts: []string{"Relay.example.com"}})
	_, port, err := net.SplitHostPort(s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	askFor := func(s *Server, host, page string) (status int, body string) {
		r := must(http.NewRequest("GET", "http://"+s.Addr()+page, nil))
		r.Host = host
		w := &memory{head: http.Header{}}
		s.http.Handler.ServeHTTP(w, r)
		return w.status, w.body.String()
	}
	for _, host := range []string{"", "localhost", "LocalHost:" + port, "localhost.", "127.0.0.1", "127.0.0.1:" + port, "[::1]:" + port, "[::1]", "192.0.2.7:1",
		"relay.example.com", "relay.example.com.:" + port} {
		if status, body := askFor(s, host, "/metrics"); status != 0 && status != 200 || !strings.Contains(body, "test_seven 7\n") {
			t.Errorf("for %q: %d %q", host, status, body)
		}
	}
	for _, host := range []string{"evil.example", "evil.example:" + port, "localhost.evil.example", "127.0.0.1.evil.example", "xlocalhost", "127.1", "0x7f.1"} {
		for _, page := range []string{"/metrics", "/healthz", "/readyz", "/debug/pprof/"} {
			if status, body := askFor(s, host, page); status != http.StatusMisdirectedRequest || strings.Contains(body, host) {
				t.Errorf("%s for %q: %d %q", page, host, status, body)
			}
		}
	}
	// Where the page has a token to ask for, or is a file, names say nothing.
	asking := open(t, Config{Registry: registry(), Token: token})
	if status, body := askFor(asking, "evil.example", "/metrics"); status != 401 || strings.Contains(body, "test_seven") {
		t.Errorf("with a token, none given: %d %q", status, body)
	}
	if status, _ := askFor(asking, "balancer.example", "/healthz"); status != 200 {
		t.Errorf("/healthz with a token: %d", status)
	}
}

func TestPanicStaysInThePage(t *testing.T) {
	t.Parallel()
	log := &logtest.Lines{}
	r := registry()
	Register(r, nil, func() int { panic("secret") }, []Reading[int]{{Name: "test_panics", Help: "Never.", Value: func(int) float64 { return 1 }}})
	s := New(Config{Registry: r, Checks: []Check{{"one", func(context.Context) health.Finding { panic("broken check") }}}, Log: slog.New(slog.NewTextHandler(log, nil))})
	server := open(t, s.cfg)
	if status, _, body := ask(t, server, "GET", "/metrics", ""); status != 200 || !strings.Contains(body, "test_seven 7\n") {
		t.Errorf("the other metrics are gone: %d %s", status, body)
	}
	if status, _, body := ask(t, server, "GET", "/readyz", ""); status != 503 || !strings.Contains(body, "broken check") {
		t.Errorf("/readyz: %d %s", status, body)
	}
	page := s.safe(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("secret") }))
	w := &memory{head: http.Header{}}
	page.ServeHTTP(w, &http.Request{URL: must(http.NewRequest("GET", "/x", nil)).URL})
	if w.status != 500 || strings.Contains(w.body.String(), "secret") || !strings.Contains(log.String(), "secret") {
		t.Errorf("%d %q, log %s", w.status, w.body.String(), log)
	}
}

// TestM6Scrapes: whoever makes scrapes fail does not fill the log.
func TestM6Scrapes(t *testing.T) {
	t.Parallel()
	log := &logtest.Lines{}
	r := registry()
	Register(r, nil, func() int { panic("secret") }, []Reading[int]{{Name: "test_panics", Help: "Never.", Value: func(int) float64 { return 1 }}})
	server := open(t, Config{Registry: r, Log: log.Logger()})
	for range 50 {
		if status, _, _ := ask(t, server, "GET", "/metrics", ""); status != 200 {
			t.Errorf("/metrics: %d", status)
		}
	}
	server.lines.Flush()
	if lines, counts := log.Count(`"error":"error gathering`), log.Count(`"more":`); lines == 0 || lines > counts {
		t.Errorf("%d lines and %d counts of 50 failures:\n%s", lines, counts, log)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// memory is a ResponseWriter.
type memory struct {
	head   http.Header
	status int
	body   bytes.Buffer
}

func (m *memory) Header() http.Header         { return m.head }
func (m *memory) WriteHeader(status int)      { m.status = status }
func (m *memory) Write(p []byte) (int, error) { return m.body.Write(p) }

func TestUnixSocket(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "admin.sock")
	// One is left over from a process that was killed.
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	_ = dead.Close()
	s := open(t, Config{Address: "unix:" + path, Registry: registry()})
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o660 {
		t.Fatalf("mode %v, %v", st, err)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}}
	resp, err := (&http.Client{Transport: transport}).Get("http://postern/healthz")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v, %v", resp, err)
	}
	_ = resp.Body.Close()
	if s.Addr() != path {
		t.Errorf("address %q", s.Addr())
	}
	plain := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(plain, []byte("kept"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := New(Config{Address: "unix:" + plain}).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "is not a socket") {
		t.Errorf("a plain file in the way: %v", err)
	}
	if text, _ := os.ReadFile(plain); string(text) != "kept" {
		t.Error("the file was removed")
	}
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]struct{ valid, local bool }{
		"127.0.0.1:5878": {true, true}, "localhost:5878": {true, true}, "[::1]:1": {true, true}, "[::ffff:127.0.0.1]:1": {true, true},
		"unix:/run/x": {true, true}, "unix:": {false, true}, "0.0.0.0:5878": {true, false}, ":5878": {true, false},
		"relay.example.com:5878": {true, false}, "127.0.0.1.example.com:1": {true, false}, "5878": {false, false}, "127.0.0.1:": {false, true},
	} {
		if err := CheckAddress(address); (err == nil) != want.valid {
			t.Errorf("%s: %v", address, err)
		}
		if IsLocal(address) != want.local {
			t.Errorf("%s: local %v", address, !want.local)
		}
	}
}

// A node whose predecessor still has the address serves as soon as that is gone.
func TestAddressInUse(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "admin.sock")} {
		first := New(Config{Address: address})
		if err := first.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(address, unixPrefix) {
			address = first.Addr()
		}
		log := &logtest.Lines{}
		second := open(t, Config{Address: address, Registry: registry(), Log: slog.New(slog.NewTextHandler(log, nil))})
		if second.Addr() != "" || !strings.Contains(log.String(), "is in use") {
			t.Fatalf("two servers at %s; log %s", address, log)
		}
		if err := first.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(patience); second.Addr() == ""; {
			if time.Now().After(deadline) {
				t.Fatalf("the address is not taken within %v: %s", patience, log)
			}
			time.Sleep(10 * time.Millisecond) // a poll of what nobody signals
		}
	}
	if err := New(Config{Address: "192.0.2.1:5878"}).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "cannot listen on 192.0.2.1:5878") {
		t.Errorf("an address of another machine: %v", err)
	}
}

// A thousand scrapes leave nothing behind.
func TestScrapesDoNotGrow(t *testing.T) {
	r := registry()
	observer := MailObserver(r)
	QueueObserver(r)
	s := open(t, Config{Registry: r, Checks: []Check{well("one")}})
	heap := func() uint64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	scrapes := func(n int) {
		for range n {
			feed(observer, "x")
			if status, _, _ := ask(t, s, "GET", "/metrics", ""); status != 200 {
				t.Fatal(status)
			}
		}
	}
	scrapes(50)
	before, goroutines := heap(), runtime.NumGoroutine()
	scrapes(1000)
	if after := heap(); after > before+2<<20 {
		t.Errorf("the heap grew from %d to %d octets", before, after)
	}
	for deadline := time.Now().Add(patience); runtime.NumGoroutine() > goroutines+10; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) { // not those of connections that are being closed
			t.Fatalf("%d goroutines, %d before", runtime.NumGoroutine(), goroutines)
		}
	}
}

func TestReadyzIsJSON(t *testing.T) {
	t.Parallel()
	s := open(t, Config{Checks: []Check{well("one"), ill("two")}})
	status, head, body := ask(t, s, "GET", "/readyz", "")
	var got report
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	if status != 503 || head.Get("Content-Type") != "application/json" || got.Ready || len(got.Checks) != 2 ||
		got.Checks[0] != (result{"one", health.OK, "secret detail", ""}) || got.Checks[1] != (result{"two", health.Failed, "secret detail", "do this"}) {
		t.Errorf("%d %v %+v", status, head, got)
	}
}
