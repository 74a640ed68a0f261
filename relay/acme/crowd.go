package acme

import (
	"net"
	"net/netip"
	"slices"
	"sync"
)

// crowd is a listener with a bound on its connections. One more closes one that is
// there: the oldest of the address that has the most. A client that holds
// connections open must not keep the authority from validating, and so prevent renewals.
type crowd struct {
	net.Listener
	most int

	mu     sync.Mutex
	guests []*guest // the oldest first
}

// guest is one of the connections.
type guest struct {
	net.Conn
	crowd *crowd
	from  netip.Addr
}

func newCrowd(ln net.Listener, most int) *crowd { return &crowd{Listener: ln, most: most} }

// Accept implements net.Listener.
func (c *crowd) Accept() (net.Conn, error) {
	conn, err := c.Listener.Accept()
	if err != nil {
		return nil, err
	}
	g := &guest{Conn: conn, crowd: c, from: addressOf(conn)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.guests) >= c.most {
		c.remove(c.superfluous()).close()
	}
	c.guests = append(c.guests, g)
	return g, nil
}

// superfluous is the place of the one that has to go.
func (c *crowd) superfluous() (at int) {
	count := map[netip.Addr]int{}
	for _, g := range c.guests {
		count[g.from]++
	}
	for i, g := range c.guests {
		if count[g.from] > count[c.guests[at].from] {
			at = i
		}
	}
	return at
}

func (c *crowd) remove(at int) *guest {
	g := c.guests[at]
	c.guests = slices.Delete(c.guests, at, at+1)
	return g
}

func (g *guest) close() { _ = g.Conn.Close() } // a stranger's; it may come again

// Close implements net.Conn.
func (g *guest) Close() error {
	g.crowd.mu.Lock()
	if at := slices.Index(g.crowd.guests, g); at >= 0 {
		g.crowd.remove(at)
	}
	g.crowd.mu.Unlock()
	return g.Conn.Close()
}

func addressOf(conn net.Conn) netip.Addr {
	if tcp, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return tcp.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
