package queue

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
)

const (
	connectTimeout = 10 * time.Second // with all servers of the URL, at least
	idleCheck      = time.Second      // after so long without use a connection is looked at
	pingTime       = 2 * time.Second  // then it must answer, or another one is made
)

// session is one connection of this package's own, made again when it broke. It
// is used by one goroutine.
//
// It differs from a pooled connection in two ways that durability needs. It never
// sends a cancel request: pgx sends one when a context ends or a read fails, and a
// commit that waits for its standby answers it with success. And it notices the
// warning by which the server says that this has happened all the same.
type session struct {
	pool   *pgxpool.Config
	tune   string
	conn   *pgx.Conn
	used   time.Time    // last
	begun  time.Time    // when conn was
	wrote  atomic.Int64 // octets, over all connections
	mark   int64        // wrote, when conn was last taken
	warned atomic.Bool
	// onConnect, when set, prepares a new connection further.
	onConnect func(context.Context, *pgx.Conn) error
}

// Settings of a session. The statements of this package find their rows by index
// whatever the statistics of a table that is empty now and full in a minute say,
// and their plans are made once.
const (
	tunePlans = `set default_transaction_isolation = 'read committed'; set synchronous_commit = on; set enable_seqscan = off; set enable_hashjoin = off; set enable_mergejoin = off;` +
		` set jit = off; set plan_cache_mode = force_generic_plan; set idle_in_transaction_session_timeout = '60s';`
	tuneWork   = tunePlans + ` set statement_timeout = '60s'; set lock_timeout = '15s'`
	tuneCommit = tunePlans + ` set statement_timeout = 0; set lock_timeout = '15s'`
)

func newSession(pool *pgxpool.Pool, tune string) *session {
	return &session{pool: pool.Config(), tune: tune}
}

// durably is the part of a statement's select list that makes its own commit wait
// for durability, whatever the defaults of the role, the database or a pooler's
// last client are. remote_apply is stronger and stays.
const durably = `set_config('synchronous_commit', case current_setting('synchronous_commit') when 'remote_apply' then 'remote_apply' else 'on' end, true)`

// get returns the connection, making it if there is none. Errors are *connectError.
//
// One that was idle is looked at first: a server that went away meanwhile has closed
// it, and what is sent into it would be in doubt for a minute instead of refused immediately.
func (s *session) get(ctx context.Context) (*pgx.Conn, error) {
	if s.conn != nil && time.Since(s.used) > idleCheck {
		ctx, cancel := context.WithTimeout(ctx, pingTime)
		if s.conn.Ping(ctx) != nil {
			s.drop()
		}
		cancel()
	}
	s.used = time.Now()
	if s.conn != nil && !s.conn.IsClosed() {
		s.take()
		return s.conn, nil
	}
	hosts := time.Duration(1 + len(s.pool.ConnConfig.Fallbacks))
	ctx, cancel := context.WithTimeout(ctx, max(connectTimeout, hosts*s.pool.ConnConfig.ConnectTimeout))
	defer cancel()
	begun := time.Now()
	conn, err := s.connect(ctx)
	if err != nil {
		return nil, &connectError{err}
	}
	s.conn, s.begun = conn, begun
	s.take()
	return conn, nil
}

// take begins a use of the connection.
func (s *session) take() {
	s.warned.Store(false)
	s.mark = s.wrote.Load()
}

func (s *session) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := s.pool.ConnConfig.Copy()
	if s.pool.BeforeConnect != nil {
		if err := s.pool.BeforeConnect(ctx, cfg); err != nil {
			return nil, err
		}
	}
	withoutCancel(cfg, &s.wrote)
	before := cfg.OnNotice
	cfg.OnNotice = func(c *pgconn.PgConn, n *pgconn.Notice) {
		if isReplicationWarning(n) {
			s.warned.Store(true)
		}
		if before != nil {
			before(c, n)
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, s.tune, pgx.QueryExecModeSimpleProtocol); err != nil {
		closeNow(conn)
		return nil, fmt.Errorf("settings: %w", err)
	}
	if s.onConnect != nil {
		if err := s.onConnect(ctx, conn); err != nil {
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

// end judges a finished use of the connection: err unless the commit was not
// confirmed. A connection after trouble is not used again.
func (s *session) end(err error) error {
	s.used = time.Now()
	if err != nil && s.wrote.Load() == s.mark {
		err = &unsentError{err}
	}
	if err == nil && s.warned.Load() {
		err = errNotReplicated
	}
	if err != nil && (poisoned(err) || errors.Is(err, errNotReplicated) || (s.conn != nil && s.conn.IsClosed())) {
		s.drop()
	}
	return err
}

// drop closes the connection without a word to the server's other backends.
func (s *session) drop() {
	if s.conn != nil {
		closeNow(s.conn)
		s.conn = nil
	}
}

// close ends the session in good order.
func (s *session) close() {
	if s.conn != nil && !s.conn.IsClosed() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = s.conn.Close(ctx)
	}
	s.conn = nil
}

func closeNow(conn *pgx.Conn) {
	// A dead context makes pgx skip the farewell and the wait for it.
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	_ = conn.Close(ctx)
}

// ConfigureEnqueuePool makes the connections of a pool ones that never send a cancel
// request, see session.
func ConfigureEnqueuePool(cfg *pgxpool.Config) {
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

// withoutCancel lets one connection be made with cfg, and no cancel request after it. What
// is written to it is counted.
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

func (c countingConn) Write(p []byte) (int, error) {
	c.wrote.Add(int64(len(p)))
	return c.Conn.Write(p)
}

// isDown reports trouble that is the server's and not the statement's.
func isDown(err error) bool {
	if ofTheRow(err) {
		return false
	}
	var connect *connectError
	if errors.As(err, &connect) {
		return true
	}
	switch class(err) {
	case "", "08", "25", "3D", "42", "53", "57", "58", "XX":
		return true
	}
	return false
}
