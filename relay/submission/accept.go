package submission

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"postern/internal/share"
	"postern/relay/smtp"
)

// Waits after a failed accept: out of descriptors (EMFILE, ENFILE) or of memory,
// trying again immediately would spin.
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
		if s.closing.Err() != nil {
			return
		}
		if errors.Is(err, net.ErrClosed) {
			s.log.Error("listener is closed", "listener", l.Name, "error", err)
			return
		}
		if s.mail.Allow("accept failed", netip.AddrPort{}) {
			s.log.Warn("accept failed, waiting", "listener", l.Name, "error", err)
		}
		s.counts.acceptErrors.Add(1)
		wait = min(max(2*wait, firstBackoff), lastBackoff)
		select {
		case <-time.After(wait):
		case <-s.closing.Done():
			return
		}
	}
}

// welcome opens a session for conn, or replies why not and closes it.
func (s *Server) welcome(l *listener, conn net.Conn) {
	a := arrival{listener: l, conn: conn, peer: peerOf(conn.RemoteAddr())}
	if set := l.settings.Load(); len(set.proxies) > 0 {
		if a.proxied = true; !set.isProxy(a.peer.addr.Addr()) {
			s.refuseStray(a)
			return
		}
	} else {
		a.counted = tally{network: a.peer.network, named: true}
	}
	if full := s.peers.enter(a.counted); full != noCrowd {
		s.turnAway(l, conn, a.peer.addr, full)
		return
	}
	if !a.proxied {
		s.counts.sessions.Add(1)
	}
	s.open(a)
}

// arrival is a connection that was accepted.
type arrival struct {
	listener *listener
	conn     net.Conn
	peer     peer
	counted  tally
	proxied  bool // peer is a load balancer, which says first for whom it connects
}

// turnAway tells a client that there are too many.
func (s *Server) turnAway(l *listener, conn net.Conn, client netip.AddrPort, full crowd) {
	s.counts.refused(full)
	if s.mail.Allow("turned away", client) {
		s.log.Warn("client turned away: too many connections",
			"client", client.String(), "listener", l.Name, "of_its_network", full == fullNetwork)
	}
	s.sayAndClose(l, conn, replyTooMany)
}

// sayAndClose is for a client that gets no session. On a TLS listener it could not
// read the reply and a handshake would cost more than a session, so it hears nothing.
// The short reply fits the socket's buffer, so that the write does not wait.
func (s *Server) sayAndClose(l *listener, conn net.Conn, r smtp.Reply) {
	defer conn.Close()
	if l.TLS == Implicit {
		return
	}
	if conn.SetWriteDeadline(time.Now().Add(100*time.Millisecond)) != nil {
		return
	}
	_, _ = conn.Write(r.Append(nil)) // it is closed either way
}

// peer is where a connection comes from. network is what is counted together.
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
	return peerAt(p.addr)
}

func peerAt(addr netip.AddrPort) peer {
	ip := addr.Addr().Unmap().WithZone("")
	return peer{addr: netip.AddrPortFrom(ip, addr.Port()), network: share.Network(ip)}
}

// peers counts connections, in all and by network. Of the places a tenth is kept for
// networks from which somebody has logged in.
type peers struct {
	places *share.Pool // by network

	mu         sync.Mutex
	perNetwork int
	known      map[netip.Prefix]time.Time // when somebody last logged in from there
}

const (
	// KnownNetworks is how many networks are remembered from which somebody has logged in.
	KnownNetworks = 10_000
	knownTime     = 24 * time.Hour // after the last login
)

func newPeers(max, perNetwork int) *peers {
	return &peers{places: share.New(int64(max), sharePart), perNetwork: perNetwork, known: make(map[netip.Prefix]time.Time)}
}

// crowd is which limit kept a connection out.
type crowd int

const (
	noCrowd crowd = iota
	fullServer
	fullNetwork
)

// tally is how a connection is counted: in all and, once the client is known, for its
// network.
type tally struct {
	network netip.Prefix
	named   bool
}

// resize sets the limits. Open connections stay.
func (c *peers) resize(max, perNetwork int) {
	c.places.Resize(int64(max))
	c.mu.Lock()
	defer c.mu.Unlock()
	c.perNetwork = perNetwork
}

// enter counts a connection in unless that would be too many.
func (c *peers) enter(t tally) crowd {
	if !t.named {
		// A balancer's own address has no share: its clients have theirs.
		if c.places.Take(1) {
			return noCrowd
		}
		return fullServer
	}
	kept, full := c.crowded(t.network, 0)
	if full != noCrowd {
		return full
	}
	if !c.places.TakeBut(kept, 1, t.network) {
		return fullServer
	}
	return noCrowd
}

// crowded returns which limit, other than its share, keeps a connection of a network out, and
// how many places are kept for others. counted is 1 if it is counted in all already.
func (c *peers) crowded(network netip.Prefix, counted int64) (kept int64, full crowd) {
	c.mu.Lock()
	perNetwork := int64(c.perNetwork)
	c.mu.Unlock()
	if c.places.Held(network) >= perNetwork {
		return 0, fullNetwork
	}
	if c.knows(network) {
		return 0, noCrowd
	}
	used, size := c.places.Use()
	if kept = size / 10; used-counted >= size-kept {
		return kept, fullServer
	}
	return kept, noCrowd
}

// enterNetwork counts a connection for its network that is counted in all already.
func (c *peers) enterNetwork(network netip.Prefix) crowd {
	kept, full := c.crowded(network, 1)
	if full != noCrowd {
		return full
	}
	if !c.places.JoinBut(kept, 1, network) {
		return fullNetwork
	}
	return noCrowd
}

func (c *peers) leave(t tally) {
	c.places.Give(1)
	if t.named {
		c.places.Leave(1, t.network)
	}
}

// pressed reports that there is little room left.
func (c *peers) pressed() bool { return c.places.Pressed() }

// know remembers that somebody has logged in from a network.
func (c *peers) know(network netip.Prefix) {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, known := c.known[network]; !known && len(c.known) >= KnownNetworks {
		for other := range c.known { // any will do: there are many
			delete(c.known, other)
			break
		}
	}
	c.known[network] = now
}

// knows reports that somebody has logged in from a network within a day.
func (c *peers) knows(network netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	at, known := c.known[network]
	return known && time.Since(at) < knownTime
}
