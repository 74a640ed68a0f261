package submission

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Waits after a failed accept: out of descriptors (EMFILE, ENFILE) or of memory,
// trying again at once would spin.
const (
	firstBackoff = 5 * time.Millisecond
	lastBackoff  = time.Second
)

// accept takes connections of one listener until it is closed by Shutdown.
func (s *Server) accept(l *listener) {
	var wait time.Duration
	for {
		conn, err := l.Net.Accept()
		if err == nil {
			wait = 0
			s.welcome(l, conn)
			continue
		}
		if s.draining.Err() != nil {
			return
		}
		if errors.Is(err, net.ErrClosed) {
			s.log.Error("listener is closed", "listener", l.Name, "error", err)
			return
		}
		if wait == 0 {
			s.log.Warn("accept failed, waiting", "listener", l.Name, "error", err) // once for each spell of trouble
		}
		s.counts.acceptErrors.Add(1)
		wait = min(max(2*wait, firstBackoff), lastBackoff)
		select {
		case <-time.After(wait):
		case <-s.draining.Done():
			return
		}
	}
}

// welcome opens a session for conn, or says why not and closes it.
func (s *Server) welcome(l *listener, conn net.Conn) {
	p := peerOf(conn.RemoteAddr())
	if full := s.peers.enter(p); full != noCrowd {
		s.counts.refused(full)
		s.turnAway(l, conn)
		return
	}
	s.counts.sessions.Add(1)
	if !s.open(l, conn, p) {
		s.peers.leave(p)
		_ = conn.Close()
	}
}

// turnAway tells a client that there are too many. On a TLS listener it could not
// read that and a handshake would cost more than a session, so it hears nothing.
// The short reply fits the socket's buffer, so that the write does not wait.
func (s *Server) turnAway(l *listener, conn net.Conn) {
	defer conn.Close()
	if l.TLS == Implicit {
		return
	}
	if conn.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) != nil {
		return
	}
	_, _ = conn.Write(replyTooMany.Append(nil)) // it is closed either way
}

// peer is where a connection comes from. network is what is counted together: an
// IPv4 address, or the /64 that one IPv6 subscriber has.
type peer struct {
	addr    netip.AddrPort
	network netip.Prefix
}

func peerOf(a net.Addr) peer {
	var p peer
	if tcp, ok := a.(*net.TCPAddr); ok {
		p.addr = tcp.AddrPort()
	} else if parsed, err := netip.ParseAddrPort(a.String()); err == nil {
		p.addr = parsed
	}
	ip := p.addr.Addr().Unmap().WithZone("")
	p.addr = netip.AddrPortFrom(ip, p.addr.Port())
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p.network, _ = ip.Prefix(bits) // the zero Prefix for no address at all
	return p
}

// peers counts connections, in all and by network.
type peers struct {
	mu         sync.Mutex
	max        int
	perNetwork int
	total      int
	by         map[netip.Prefix]int
}

func newPeers(max, perNetwork int) *peers {
	return &peers{max: max, perNetwork: perNetwork, by: make(map[netip.Prefix]int)}
}

// crowd is which limit kept a connection out.
type crowd int

const (
	noCrowd crowd = iota
	fullServer
	fullNetwork
)

// enter counts a connection in unless that would be too many.
func (c *peers) enter(p peer) crowd {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.total >= c.max:
		return fullServer
	case c.by[p.network] >= c.perNetwork:
		return fullNetwork
	}
	c.total++
	c.by[p.network]++
	return noCrowd
}

func (c *peers) leave(p peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.total--
	if c.by[p.network]--; c.by[p.network] == 0 {
		delete(c.by, p.network)
	}
}
