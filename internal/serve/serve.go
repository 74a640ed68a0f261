// Package serve runs servers on loopback that a test, the demo or the benchmark starts
// and ends: nothing of a server runs after its Close has returned.
package serve

import (
	"net"
	"sync"
)

// Server is a listener whose connections are served.
type Server struct {
	ln   net.Listener
	each func(net.Conn)
	done sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{} // nil: closed
}

// Start serves ln: each is called in a goroutine of its own for every connection, which
// is closed when it returns.
func Start(ln net.Listener, each func(net.Conn)) *Server {
	s := &Server{ln: ln, each: each, conns: make(map[net.Conn]struct{})}
	s.done.Go(s.accept)
	return s
}

// Addr is where the server listens.
func (s *Server) Addr() *net.TCPAddr { return s.ln.Addr().(*net.TCPAddr) }

func (s *Server) accept() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return // closed: a listener on loopback fails in no other way that is worth a retry
		}
		s.done.Go(func() { s.serve(conn) })
	}
}

func (s *Server) serve(conn net.Conn) {
	defer conn.Close()
	s.mu.Lock()
	if s.conns == nil {
		s.mu.Unlock()
		return
	}
	s.conns[conn] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, conn)
		s.mu.Unlock()
	}()
	s.each(conn)
}

// Close ends the listener and all connections, and returns when nothing runs any more.
func (s *Server) Close() {
	_ = s.ln.Close()
	s.mu.Lock()
	for conn := range s.conns {
		_ = conn.Close()
	}
	s.conns = nil
	s.mu.Unlock()
	s.done.Wait()
}
