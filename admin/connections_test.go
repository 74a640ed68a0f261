package admin

import (
	"bufio"
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"postern/admin/health"
)

// dial opens a connection that ends with the test.
func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// TestIdleConnectionsGiveWay: whoever holds all connections keeps nobody from asking
// whether the node is well, and a request that is in work is answered.
func TestIdleConnectionsGiveWay(t *testing.T) {
	t.Parallel()
	asked, answer := make(chan struct{}), make(chan struct{})
	s := open(t, Config{Checks: []Check{{"slow", func(context.Context) health.Finding {
		close(asked)
		<-answer
		return health.Finding{Status: health.OK}
	}}}})
	inWork := dial(t, s)
	if _, err := io.WriteString(inWork, "GET /readyz HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-asked
	// Silent, in the middle of a request, and idle behind one.
	for _, start := range []string{"", "GET /healthz HT", "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"} {
		for range maxConnections {
			if _, err := io.WriteString(dial(t, s), start); err != nil {
				t.Fatal(err)
			}
		}
	}
	if status, _, _ := ask(t, s, http.MethodGet, "/healthz", ""); status != http.StatusOK {
		t.Errorf("status %d", status)
	}
	close(answer)
	resp, err := http.ReadResponse(bufio.NewReader(inWork), nil)
	if err != nil {
		t.Fatalf("the request in work: %v", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("the request in work: %s", resp.Status)
	}
}
