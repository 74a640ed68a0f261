package admin

import (
	"context"
	"net"
	"net/http"
	"sync"
)

// connections bounds those that are open concurrently. When there are too many, the one
// that has waited longest for its client's next request is closed: a client
// that holds connections open must not prevent the next look at this node's health.
type connections struct {
	max int

	mu   sync.Mutex
	turn uint64
	open map[*connection]struct{}
}

// connection is one of them.
type connection struct {
	net.Conn
	all   *connections
	turn  uint64 // when it began to wait
	asked bool   // a request is in work
}

func newConnections(max int) *connections {
	return &connections{max: max, open: make(map[*connection]struct{})}
}

// bound makes ln one whose connections are counted.
func (c *connections) bound(ln net.Listener) net.Listener { return &boundListener{ln, c} }

type boundListener struct {
	net.Listener
	all *connections
}

func (l *boundListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if entered := l.all.enter(conn); entered != nil {
			return entered, nil
		}
		_ = conn.Close() // requests are in work on all that there are
	}
}

// enter counts a connection in, nil if there is no room for it.
func (c *connections) enter(conn net.Conn) *connection {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.open) >= c.max {
		oldest := c.oldest()
		if oldest == nil {
			return nil
		}
		delete(c.open, oldest)
		_ = oldest.Conn.Close() // its client may come again
	}
	c.turn++
	entered := &connection{Conn: conn, all: c, turn: c.turn}
	c.open[entered] = struct{}{}
	return entered
}

// oldest is the connection that has waited longest.
func (c *connections) oldest() (oldest *connection) {
	for x := range c.open {
		if !x.asked && (oldest == nil || x.turn < oldest.turn) {
			oldest = x
		}
	}
	return oldest
}

// Close implements net.Conn.
func (x *connection) Close() error {
	x.all.mu.Lock()
	delete(x.all.open, x)
	x.all.mu.Unlock()
	return x.Conn.Close()
}

type connectionKey struct{}

// context lets a request find its connection; it is for http.Server.ConnContext.
func (c *connections) context(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connectionKey{}, conn)
}

// serving keeps a connection while a request on it is in work.
func (c *connections) serving(pages http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if x, ok := r.Context().Value(connectionKey{}).(*connection); ok {
			c.serve(x, true)
			defer c.serve(x, false)
		}
		pages.ServeHTTP(w, r)
	})
}

func (c *connections) serve(x *connection, asked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.turn++
	x.asked, x.turn = asked, c.turn
}
