// Package crowd bounds the connections of a listener. One connection too many closes one
// that waits for its client: holding connections open must keep nobody else out.
package crowd

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// Listener is a listener with a bound on its connections. The one that gives way is, of
// those from the address that has the most, the one that has waited longest.
type Listener struct {
	net.Listener
	most int

	mu     sync.Mutex
	guests []*Guest // the one that has waited longest first
}

// Guest is one of the connections.
type Guest struct {
	net.Conn
	crowd *Listener
	from  netip.Addr
	busy  bool // a request is in work
}

// New bounds the connections of ln.
func New(ln net.Listener, most int) *Listener { return &Listener{Listener: ln, most: most} }

// Accept implements net.Listener. The connection is a Guest.
func (c *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if g := c.enter(conn); g != nil {
			return g, nil
		}
		_ = conn.Close() // requests are in work on all that there are
	}
}

// enter counts a connection in, nil if there is no room for it.
func (c *Listener) enter(conn net.Conn) *Guest {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.guests) >= c.most {
		at := c.superfluous()
		if at < 0 {
			return nil
		}
		_ = c.guests[at].Conn.Close() // its client may come again
		c.guests = slices.Delete(c.guests, at, at+1)
	}
	g := &Guest{Conn: conn, crowd: c, from: addressOf(conn)}
	c.guests = append(c.guests, g)
	return g
}

// superfluous is the place of the one that has to go, -1 for none.
func (c *Listener) superfluous() int {
	count := map[netip.Addr]int{}
	for _, g := range c.guests {
		count[g.from]++
	}
	found := -1
	for i, g := range c.guests {
		if !g.busy && (found < 0 || count[g.from] > count[c.guests[found].from]) {
			found = i
		}
	}
	return found
}

// Serve runs work, a request on this connection, which does not give way meanwhile.
func (g *Guest) Serve(work func()) {
	g.set(true)
	defer g.set(false)
	work()
}

func (g *Guest) set(busy bool) {
	g.crowd.mu.Lock()
	defer g.crowd.mu.Unlock()
	g.busy = busy
	if g.crowd.remove(g) { // and from now on it waits
		g.crowd.guests = append(g.crowd.guests, g)
	}
}

func (c *Listener) remove(g *Guest) (there bool) {
	at := slices.Index(c.guests, g)
	if at >= 0 {
		c.guests = slices.Delete(c.guests, at, at+1)
	}
	return at >= 0
}

// Close implements net.Conn.
func (g *Guest) Close() error {
	g.crowd.mu.Lock()
	g.crowd.remove(g)
	g.crowd.mu.Unlock()
	return g.Conn.Close()
}

func addressOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
