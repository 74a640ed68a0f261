package main

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"
)

// The exit status is the server's answer, over TCP and over a socket.
func TestHealthcheck(t *testing.T) {
	t.Parallel()
	status, body := http.StatusOK, "{}"
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

func TestDialable(t *testing.T) {
	t.Parallel()
	for address, want := range map[string]string{
		"127.0.0.1:5878": "tcp 127.0.0.1:5878", "0.0.0.0:5878": "tcp localhost:5878", "[::]:5878": "tcp localhost:5878",
		":5878": "tcp localhost:5878", "unix:/run/postern/admin.sock": "unix /run/postern/admin.sock",
	} {
		if network, where := dialable(address); network+" "+where != want {
			t.Errorf("%s is reached at %s %s, want %s", address, network, where, want)
		}
	}
}
