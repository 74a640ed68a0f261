package pg

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/panics"
)

const (
	connectTimeout = 10 * time.Second // with all servers of the URL, at least
	idleCheck      = time.Second      // after so long without use a connection is looked at
	pingTime       = 2 * time.Second  // then it must answer, or another one is made
)

// Dedicated is one connection of its user's own, made again when it broke. It
// is used by one goroutine.
//
// It differs from a pooled connection in two ways that durability needs. It never
// sends a cancel request: pgx sends one when a context ends or a read fails, and a
// commit that waits for its standby answers it with success. And it notices the
// warning by which the server says that this has happened all the same.
type Dedicated struct {
	pool   *pgxpool.Config
	tune   string
	conn   *pgx.Conn
	used   time.Time    // last
	wrote  atomic.Int64 // octets, over all connections
	mark   int64        // wrote, when conn was last taken
	warned atomic.Bool
	// Begun is when the present connection was begun to be made.
	Begun time.Time
	// OnConnect, when set, prepares a new connection further.
	OnConnect func(context.Context, *pgx.Conn) error
	// Faults, when set, are where tests make a use fail.
	Faults *Faults
}

// Faults are called in Get and in an End without an error; nil does nothing.
type Faults struct{ Before, After func(*pgx.Conn) error }

// Settings of a dedicated connection. The queue's statements find their rows by index
// whatever the statistics of a table that is empty now and full in a minute say,
// and their plans are made once.
const (
	tunePlans = `set default_transaction_isolation = 'read committed'; set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off;` +
		` select set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, false);` + // as durably()
		` set jit = off; set plan_cache_mode = force_generic_plan; set idle_in_transaction_session_timeout = '60s';`
	TuneWork   = tunePlans + ` set statement_timeout = '60s'; set lock_timeout = '15s'`
	TuneCommit = tunePlans + ` set statement_timeout = 0; set lock_timeout = '1s'` // others' mail waits behind a lock
)

// NewDedicated makes one from the settings of a pool's connections; tune is TuneWork or
// TuneCommit.
func NewDedicated(pool *pgxpool.Pool, tune string) *Dedicated {
	return &Dedicated{pool: pool.Config(), tune: tune}
}

// Get returns the connection, making it if there is none. Errors are *ConnectError.
//
// One that was idle is looked at first: a server that went away meanwhile has closed
// it, and what is sent into it would be in doubt for a minute instead of refused immediately.
func (d *Dedicated) Get(ctx context.Context) (*pgx.Conn, error) {
	if d.conn != nil && time.Since(d.used) > idleCheck {
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		if d.conn.Ping(ctx) != nil {
			d.Drop()
		}
		cancel()
	}
	d.used = time.Now()
	if d.conn != nil && !d.conn.IsClosed() {
		return d.take()
	}
	hosts := time.Duration(1 + len(d.pool.ConnConfig.Fallbacks))
	ctx, cancel := context.WithTimeout(ctx, max(connectTimeout, hosts*d.pool.ConnConfig.ConnectTimeout))
	defer cancel()
	begun := time.Now()
	conn, err := d.connect(ctx)
	if err != nil {
		return nil, &ConnectError{err}
	}
	d.conn, d.Begun = conn, begun
	return d.take()
}

// take begins a use of the connection.
func (d *Dedicated) take() (*pgx.Conn, error) {
	d.warned.Store(false)
	d.mark = d.wrote.Load()
	if d.Faults != nil && d.Faults.Before != nil {
		if err := d.Faults.Before(d.conn); err != nil {
			return nil, err
		}
	}
	return d.conn, nil
}

func (d *Dedicated) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := d.pool.ConnConfig.Copy()
	if d.pool.BeforeConnect != nil {
		if err := d.pool.BeforeConnect(ctx, cfg); err != nil {
			return nil, err
		}
	}
	withoutCancel(cfg, &d.wrote)
	before := cfg.OnNotice
	cfg.OnNotice = func(c *pgconn.PgConn, n *pgconn.Notice) {
		if isReplicationWarning(n) {
			d.warned.Store(true)
		}
		if before != nil {
			before(c, n)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, d.tune, pgx.QueryExecModeSimpleProtocol); err != nil {
		closeNow(conn)
		return nil, fmt.Errorf("settings: %w", err)
	}
	fastArrays(conn.TypeMap())
	if d.OnConnect != nil {
		if err := d.OnConnect(ctx, conn); err != nil {
			closeNow(conn)
			return nil, err
		}
	}
	return conn, nil
}

// isReplicationWarning recognises the warnings of a commit whose wait for a
// synchronous standby was given up (01000 when cancelled, 57P01 when the backend is
// terminated). They are recognised by severity and code, since their text is translated.
func isReplicationWarning(n *pgconn.Notice) bool {
	return n.SeverityUnlocalized == "WARNING" && (n.Code == "01000" || n.Code == "57P01")
}

// End judges a finished use of the connection: err unless the commit was not
// confirmed. A connection after trouble is not used again.
func (d *Dedicated) End(err error) error {
	d.used = time.Now()
	if err == nil && d.Faults != nil && d.Faults.After != nil {
		err = d.Faults.After(d.conn)
	}
	if err != nil && d.wrote.Load() == d.mark {
		err = &UnsentError{err}
	}
	if err == nil && d.warned.Load() {
		err = ErrNotReplicated
	}
	if err != nil && (poisoned(err) || errors.Is(err, ErrNotReplicated) || (d.conn != nil && d.conn.IsClosed())) {
		d.Drop()
	}
	return err
}

// Panicked makes of a panic in a use of d an error of that use. The connection is in an
// unknown state then.
func (d *Dedicated) Panicked(err error) error {
	if caught := (*panics.Error)(nil); errors.As(err, &caught) {
		err = d.End(err)
		d.Drop()
	}
	return err
}

// Drop closes the connection without the farewell that would wait for the server.
func (d *Dedicated) Drop() {
	if d.conn != nil {
		closeNow(d.conn)
		d.conn = nil
	}
}

// Close ends the connection in good order.
func (d *Dedicated) Close() {
	if d.conn != nil && !d.conn.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = d.conn.Close(ctx)
	}
	d.conn = nil
}

func closeNow(conn *pgx.Conn) {
	// A dead context makes pgx skip the farewell and the wait for it.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = conn.Close(ctx)
}

// WithoutCancel makes the connections of a pool ones that never send a cancel
// request, see Dedicated.
func WithoutCancel(cfg *pgxpool.Config) {
	before := cfg.BeforeConnect
	cfg.BeforeConnect = func(ctx context.Context, cc *pgx.ConnConfig) error {
		if before != nil {
			if err := before(ctx, cc); err != nil {
				return err
			}
		}
		withoutCancel(cc, new(atomic.Int64))
		return nil
	}
}

// withoutCancel lets one connection be made with cfg, and no cancel request after it. It
// counts the octets written to it.
func withoutCancel(cfg *pgx.ConnConfig, wrote *atomic.Int64) {
	dial := &connectOnly{dial: cfg.DialFunc, wrote: wrote}
	cfg.DialFunc = dial.Dial
	after := cfg.AfterConnect
	cfg.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
		dial.connected.Store(true)
		if after != nil {
			return after(ctx, conn)
		}
		return nil
	}
}

// connectOnly dials for the connection itself and then refuses: the only later
// dial of a pgx connection is the one for a cancel request.
type connectOnly struct {
	dial      pgconn.DialFunc
	wrote     *atomic.Int64
	connected atomic.Bool
}

var errNoCancel = errors.New("this connection sends no cancel requests")

func (c *connectOnly) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	if c.connected.Load() {
		return nil, errNoCancel
	}
	conn, err := c.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return countingConn{conn, c.wrote}, nil
}

// countingConn counts before it writes: what is not counted, nobody has seen.
type countingConn struct {
	net.Conn
	wrote *atomic.Int64
}

// NetConn is what is counted.
func (c countingConn) NetConn() net.Conn { return c.Conn }

func (c countingConn) Write(p []byte) (int, error) {
	c.wrote.Add(int64(len(p)))
	return c.Conn.Write(p)
}
