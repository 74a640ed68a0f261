package acmetest

import (
	"io"
	"net"
	"sync"
	"testing"
)

// Front is a port that passes connections on, as a balancer does.
type Front struct {
	listener net.Listener

	mu    sync.Mutex
	to    func() string
	conns map[net.Conn]bool
	work  sync.WaitGroup
}

func newFront(t testing.TB) *Front {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &Front{listener: ln, conns: map[net.Conn]bool{}}
	f.work.Go(f.serve)
	t.Cleanup(func() {
		_ = ln.Close()
		f.mu.Lock()
		for conn := range f.conns {
			_ = conn.Close()
		}
		f.mu.Unlock()
		f.work.Wait()
	})
	return f
}

func (f *Front) port() int { return f.listener.Addr().(*net.TCPAddr).Port }

// To passes connections on to the address that to returns for each.
func (f *Front) To(to func() string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = to
}

func (f *Front) serve() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			return
		}
		f.work.Go(func() { f.pass(conn) })
	}
}

func (f *Front) pass(in net.Conn) {
	defer in.Close()
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
	f.mu.Lock()
	f.conns[in], f.conns[out] = true, true
	f.mu.Unlock()
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(in, out)
		_ = in.Close() // ends the other direction
	})
	_, _ = io.Copy(out, in)
	_ = out.Close()
	back.Wait()
	f.mu.Lock()
	delete(f.conns, in)
	delete(f.conns, out)
	f.mu.Unlock()
}
