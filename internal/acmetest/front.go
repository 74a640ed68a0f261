package acmetest

import (
	"io"
	"net"
	"sync"
	"testing"

	"postern/internal/serve"
)

// Front is a port that passes connections on, as a balancer does.
type Front struct {
	server *serve.Server

	mu sync.Mutex
	to func() string
}

func newFront(t testing.TB) *Front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{}
	f.server = serve.Start(ln, f.pass)
	t.Cleanup(f.server.Close)
	return f
}

func (f *Front) port() int { return f.server.Addr().Port }

// To passes connections on to the address that to returns for each.
func (f *Front) To(to func() string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = to
}

func (f *Front) pass(in net.Conn) {
	f.mu.Lock()
	to := f.to
	f.mu.Unlock()
	if to == nil {
		return
	}
	out, err := net.Dial("tcp", to())
	if err != nil {
		return
	}
	defer out.Close()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(in, out)
		_ = in.Close() // ends the other direction
	})
	_, _ = io.Copy(out, in)
	_ = out.Close()
	back.Wait()
}
