package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// The exit status is the server's answer, over TCP and over a socket.
func TestHealthcheck(t *testing.T) {
	t.Parallel()
	status, body := http.StatusOK, `{"ready":true}`
	page := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" || r.Method != http.MethodGet {
			status = http.StatusNotFound
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
	tcp := httptest.NewServer(page)
	defer tcp.Close()
	socket := filepath.Join(t.TempDir(), "admin.sock")
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := httptest.NewUnstartedServer(page)
	local.Listener = ln
	local.Start()
	defer local.Close()

	addresses := []string{strings.TrimPrefix(tcp.URL, "http://"), "unix:" + socket}
	for _, address := range addresses {
		if code, said := healthcheck(t, address); code != exitDone || said != "ready\n" {
			t.Errorf("%s: %d, %s", address, code, said)
		}
	}
	status, body = http.StatusServiceUnavailable, "{\n \"database\": \"away\x1b\"}"
	for _, address := range addresses {
		code, said := healthcheck(t, address)
		if code != exitFailed || !strings.Contains(said, `not ready (503 Service Unavailable): { "database": "away`) || strings.Contains(said, "\x1b") {
			t.Errorf("%s: %d, %s", address, code, said)
		}
	}
	body = `{"ready": false, "checks": [{"name": "spool", "state": "ok", "detail": "room"}, {"name": "database", "state": "failed", "detail": "away", "advice": "start it"},
		{"name": "epoch", "state": "failed"}]}` // with a token there is no more
	if code, said := healthcheck(t, addresses[0]); code != exitFailed || !strings.Contains(said, "not ready (503 Service Unavailable): database: away; start it | epoch\n") {
		t.Errorf("%d, %s", code, said)
	}
	status = http.StatusFound // whoever it is, it is no Postern
	if code, said := healthcheck(t, addresses[0]); code != exitFailed {
		t.Errorf("a redirection: %d, %s", code, said)
	}
	tcp.Close()
	if code, said := healthcheck(t, addresses[0]); code != exitFailed || !strings.Contains(said, "does not answer") {
		t.Errorf("nobody there: %d, %s", code, said)
	}
}

func healthcheck(t *testing.T, address string) (code int, said string) {
	t.Helper()
	var out bytes.Buffer
	code = run(t.Context(), []string{"healthcheck", "--address", address}, nil, strings.NewReader(""), &out, &out)
	return code, out.String()
}

// A server that runs is asked where its configuration says.
func TestHealthcheckOfServer(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(t.TempDir(), "admin.sock")
	with := func(address string) {
		t.Helper()
		at := regexp.MustCompile(`(?m)^\[admin\]\n.*\n`).ReplaceAllString(string(text), "")
		if err := os.WriteFile(s.config, []byte(at+"[admin]\naddress = \""+address+"\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	with("unix:" + socket)
	if _, said, err := s.postern(t, "", "healthcheck"); err == nil || !strings.Contains(said, "does not answer at "+socket) {
		t.Errorf("no server: %v, %s", err, said)
	}
	s.serve(t)
	for end := time.Now().Add(patience); ; { // on a busy machine the database may be slow to say that it is there
		said, complaint, err := s.postern(t, "", "healthcheck")
		if said == "ready\n" && err == nil {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("a server that is ready: %v, %s%s", err, said, complaint)
		}
	}
	with("")
	if _, said, err := s.postern(t, "", "healthcheck"); err == nil || !strings.Contains(said, "[admin] address is empty") {
		t.Errorf("no address: %v, %s", err, said)
	}
}
