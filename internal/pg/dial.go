// Package pg holds what concerns PostgreSQL itself: how all connections are made, so that
// none waits for ever for a silent server; a dedicated connection for durable work; what an
// error tells about a transaction; and which text a column takes.
//
// There are two kinds of silence. When a machine or the way to it is gone, what we send is
// not acknowledged: the kernel ends such a connection (TCP_USER_TIMEOUT, keepalive). When
// only the server's processes stand still, its kernel goes on acknowledging, and only a
// query shows it. The queue's heartbeat asks; when another server answers, Abandon ends the
// connections that still wait for the former.
//
// It knows none of the tables.
package pg

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"
)

const (
	// HostTime is how long one of several servers in a URL may take until a connection to it
	// can be used, unless the URL has a connect_timeout. The next one is asked after it.
	HostTime = 3 * time.Second
	// onlyTime is the same for the only server: there is no other to ask.
	onlyTime = 10 * time.Second
	// unheard is how long what was sent may stay unacknowledged. It is longer than a
	// server whose disk hangs for a while keeps its window shut: that looks the same.
	unheard = 20 * time.Second
	// cancelTime bounds a cancel request, for the sake of whoever waits for the place in
	// its pool of the connection that it is for.
	cancelTime = 2 * time.Second
)

// ErrAbandoned is what is read from a connection that Abandon has ended.
var ErrAbandoned = errors.New("the database server of this connection no longer answers")

// Dialer makes connections and knows those that are open. Its zero value is ready; it is
// safe for concurrent use.
type Dialer struct {
	mu   sync.Mutex
	open map[*conn]struct{}
}

// Use makes the one connection of cfg one of this dialer's.
func (d *Dialer) Use(cfg *pgx.ConnConfig) {
	setConnectTime(cfg)
	one := &connection{dialer: d}
	cfg.DialFunc = one.dial
	after := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		one.made.Store(true)
		if after != nil {
			return after(ctx, conn)
		}
		return nil
	}
}

// UsePool is Use for each connection of a pool.
func (d *Dialer) UsePool(cfg *pgxpool.Config) {
	setConnectTime(cfg.ConnConfig)
	before := cfg.BeforeConnect
	cfg.BeforeConnect = func(ctx context.Context, one *pgx.ConnConfig) error {
		d.Use(one)
		if before != nil {
			return before(ctx, one)
		}
		return nil
	}
}

// setConnectTime bounds how long a connection may take to be made where the URL does not.
func setConnectTime(cfg *pgx.ConnConfig) {
	switch {
	case cfg.ConnectTimeout > 0:
	case len(cfg.Fallbacks) > 0:
		cfg.ConnectTimeout = HostTime
	default:
		cfg.ConnectTimeout = onlyTime
	}
}

// Abandon ends every connection that was begun before a moment: each wait for an answer
// ends immediately with ErrAbandoned.
func (d *Dialer) Abandon(before time.Time) {
	d.mu.Lock()
	var list []*conn
	for c := range d.open {
		if c.begun.Before(before) {
			list = append(list, c)
		}
	}
	d.mu.Unlock()
	for _, c := range list {
		c.abandoned.Store(true)
		_ = c.Close()
	}
}

// connection is one connection of pgx's. A dial after it was made is a cancel request
// for it.
type connection struct {
	dialer *Dialer
	made   atomic.Bool
	last   atomic.Pointer[conn]
}

func (o *connection) dial(ctx context.Context, network, address string) (net.Conn, error) {
	cancels := o.made.Load()
	if cancels {
		if c := o.last.Load(); c != nil && c.abandoned.Load() {
			return nil, ErrAbandoned
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, cancelTime)
		defer cancel()
	}
	c, err := o.dialer.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	if cancels {
		_ = c.SetDeadline(time.Now().Add(cancelTime))
	} else {
		o.last.Store(c)
	}
	return c, nil
}

func (d *Dialer) dial(ctx context.Context, network, address string) (*conn, error) {
	dialer := net.Dialer{
		Control:         limitSilence,
		KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 3},
	}
	c := &conn{dialer: d, begun: time.Now()}
	var err error
	if c.Conn, err = dialer.DialContext(ctx, network, address); err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open == nil {
		d.open = make(map[*conn]struct{})
	}
	d.open[c] = struct{}{}
	return c, nil
}

// limitSilence sets TCP_USER_TIMEOUT (RFC 5482), which bounds unanswered keepalives too.
func limitSilence(network, _ string, raw syscall.RawConn) error {
	if network == "unix" {
		return nil
	}
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unheard.Milliseconds()))
	})
	return errors.Join(err, failed)
}

// conn is a connection that its dialer knows until it is closed.
type conn struct {
	net.Conn
	dialer    *Dialer
	begun     time.Time
	abandoned atomic.Bool
}

func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	return n, c.why(err)
}

func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	return n, c.why(err)
}

func (c *conn) why(err error) error {
	if err != nil && c.abandoned.Load() {
		return ErrAbandoned
	}
	return err
}

func (c *conn) Close() error {
	c.dialer.mu.Lock()
	delete(c.dialer.open, c)
	c.dialer.mu.Unlock()
	return c.Conn.Close()
}
