package webhook

import (
	"bufio"
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// endpoint serves connections by hand, and returns its URL.
func endpoint(t *testing.T, serve func(in *bufio.Reader, out io.Writer)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(bufio.NewReader(conn), conn)
			}()
		}
	}()
	return "http://" + l.Addr().String() + "/"
}

// readRequest reads one, and reports whether there was one.
func readRequest(in *bufio.Reader) bool {
	r, err := http.ReadRequest(in)
	if err == nil {
		_, err = io.Copy(io.Discard, r.Body)
	}
	return err == nil
}

// repeat writes text until nobody reads it.
func repeat(out io.Writer, text string) {
	for {
		if _, err := io.WriteString(out, text); err != nil {
			return
		}
	}
}

// Whatever an endpoint answers, it is soon over, and small.
func TestHostileAnswers(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		begin, again string // "": it is silent then
		status       int
	}{
		"another protocol":    {"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "", 101},
		"early hints":         {"", "HTTP/1.1 103 Early Hints\r\n\r\n", 0},
		"continue":            {"", "HTTP/1.1 100 Continue\r\n\r\n", 0},
		"an endless header":   {"HTTP/1.1 200 OK\r\n", "X-Y: z\r\n", 0},
		"an endless field":    {"HTTP/1.1 200 OK\r\nX-Y: ", "z", 0},
		"an endless line":     {"HTTP/1.1 200 ", "OK", 0},
		"an endless body":     {"HTTP/1.1 200 OK\r\n\r\n", "x", 200},
		"an endless trailer":  {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", "X: y\r\n", 200},
		"long chunk lines":    {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "1;" + strings.Repeat("x", 1000) + "\r\nx\r\n", 200},
		"another server":      {"", "SSH-2.0-\x00\r\n", 0},
		"a broken Location":   {"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: http://%zz" + strings.Repeat("x", 9000) + "\r\n\r\n", "", 0},
		"more than it counts": {"HTTP/1.1 500 No\r\nContent-Length: 1\r\n\r\n", "x", 500},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := endpoint(t, func(in *bufio.Reader, out io.Writer) {
				if !readRequest(in) {
					return
				}
				_, _ = io.WriteString(out, c.begin)
				if c.again != "" {
					repeat(out, c.again)
				}
				_, _ = in.Peek(1)
			})
			done := make(chan Answer, 1)
			go func() {
				a, err := Send(context.Background(), Reach{Allow: allow(t, "127.0.0.0/8")}, url, []Secret{newSecret()}, "id", []byte("{}"))
				if err != nil {
					t.Error(err)
				}
				done <- a
			}()
			select {
			case a := <-done:
				if taken := name == "an endless body"; (a.Err == nil) != taken || a.Status != c.status || a.Took > postTime/2 || len(a.Body) > keptAnswer || len(brief(fmt.Sprint(a.Err))) > keptAnswer {
					t.Errorf("%d after %s: %.200v", a.Status, a.Took, a.Err)
				}
			case <-time.After(postTime + 5*time.Second):
				t.Error("it is still waited for")
			}
		})
	}
}

// silence lets no connection but the later ones reach a server.
type silence struct {
	net.Listener
	first int
	held  []net.Conn
}

func (s *silence) Accept() (net.Conn, error) {
	for {
		conn, err := s.Listener.Accept()
		if err != nil || len(s.held) == s.first {
			return conn, err
		}
		s.held = append(s.held, conn)
	}
}

// An endpoint whose first connection is silent, before the handshake or behind it, is connected to anew; so
// is one that ends a connection that was kept.
func TestConnectsAnew(t *testing.T) {
	t.Parallel()
	t.Run("handshake", func(t *testing.T) {
		t.Parallel()
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		server.Listener = &silence{Listener: server.Listener, first: 1}
		server.StartTLS()
		t.Cleanup(server.Close)
		connectsAnew(t, server)
	})
	t.Run("request", func(t *testing.T) {
		t.Parallel()
		hang := make(chan struct{}, 1)
		hang <- struct{}{}
		end := make(chan struct{})
		server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor != 1 {
				t.Errorf("%s", r.Proto)
			}
			select {
			case <-hang:
				<-end
			default:
			}
		}))
		server.EnableHTTP2 = true
		server.StartTLS()
		t.Cleanup(server.Close)
		t.Cleanup(func() { close(end) })
		connectsAnew(t, server)
	})
	t.Run("kept", func(t *testing.T) {
		t.Parallel()
		url := endpoint(t, func(in *bufio.Reader, out io.Writer) {
			if readRequest(in) {
				_, _ = io.WriteString(out, "HTTP/1.1 204 Yes\r\n\r\n")
				_, _ = in.Peek(1)
			}
		})
		c, err := newClient(Reach{Allow: allow(t, "127.0.0.0/8")}, url, 1)
		must(t, err)
		defer c.close()
		for range 3 {
			if a := c.post(t.Context(), []Secret{newSecret()}, "id", []byte("{}")); a.Err != nil {
				t.Error(a.Err)
			}
		}
	})
}

func connectsAnew(t *testing.T, server *httptest.Server) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	c, err := newClient(Reach{Allow: allow(t, "127.0.0.0/8"), Roots: roots}, server.URL, 1)
	must(t, err)
	defer c.close()
	for i, wait := range []time.Duration{200 * time.Millisecond, postTime} {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		defer cancel()
		if a := c.post(ctx, []Secret{newSecret()}, "id", []byte("{}")); (a.Err == nil) != (i == 1) {
			t.Errorf("request %d: %+v", i, a)
		}
	}
}
