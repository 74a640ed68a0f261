package pg

import (
	"context"
	"errors"
	"net"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sys/unix"

	"postern/internal/pgtest"
)

// listen accepts connections and says nothing over them.
func listen(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

// TestR1SilenceIsBounded reads what the kernel was told about a connection.
func TestR1SilenceIsBounded(t *testing.T) {
	t.Parallel()
	l := listen(t)
	c, err := new(Dialer).dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	for _, option := range []struct {
		name                string
		level, number, want int
	}{
		{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 20_000},
		{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
		{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 10},
		{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 5},
	} {
		var got int
		if err := raw.Control(func(fd uintptr) { got, err = unix.GetsockoptInt(int(fd), option.level, option.number) }); err != nil {
			t.Fatal(err)
		}
		if got != option.want {
			t.Errorf("%s is %d, %v; want %d", option.name, got, err, option.want)
		}
	}
}

// open makes a pool of one connection by d.
func open(t *testing.T, d *Dialer, url string) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 1
	d.UsePool(cfg)
	pool, err := pgxpool.NewWithConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}

// TestR1AbandonEndsWaits: whoever waits over an older connection hears of it, a younger one
// goes on, and the pool has room again.
func TestR1AbandonEndsWaits(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var d Dialer
	pool := open(t, &d, db.URL)
	waits := make(chan error, 1)
	go func() {
		_, err := pool.Exec(context.Background(), `select pg_sleep($1)`, 600)
		waits <- err
	}()
	for n := 0; n == 0; {
		if err := db.Pool.QueryRow(t.Context(), `select count(*) from pg_stat_activity
			where datname = current_database() and wait_event = 'PgSleep'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	before := time.Now()
	cfg, err := pgx.ParseConfig(db.URL)
	if err != nil {
		t.Fatal(err)
	}
	d.Use(cfg)
	younger, err := pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer younger.Close(context.Background())
	d.Abandon(before)
	if err := <-waits; !errors.Is(err, ErrAbandoned) {
		t.Errorf("the older connection said %v", err)
	}
	if err := younger.Ping(t.Context()); err != nil {
		t.Errorf("the younger connection: %v", err)
	}
	if err := pool.Ping(t.Context()); err != nil {
		t.Errorf("the pool has no room: %v", err)
	}
	if n := len(d.open); n != 2 {
		t.Errorf("%d connections are known, want the younger and the pool's", n)
	}
}

// TestR1CancelRequestIsBounded: pgx would wait a quarter of a minute for a server that
// stands still to take a cancel request, and keep the place in its pool.
func TestR1CancelRequestIsBounded(t *testing.T) {
	t.Parallel()
	l := listen(t)
	one := &connection{dialer: &Dialer{}}
	c, err := one.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	one.made.Store(true)
	request, err := one.dial(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer request.Close()
	if _, err := request.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a cancel request that nobody takes: %v", err)
	}
	one.dialer.Abandon(time.Now())
	if _, err := one.dial(t.Context(), "tcp", l.Addr().String()); !errors.Is(err, ErrAbandoned) {
		t.Errorf("a cancel request to a server that was abandoned: %v", err)
	}
}

// TestR1EachHostHasItsTime: the URL may say how long, and else it is bounded.
func TestR1EachHostHasItsTime(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]time.Duration{"": HostTime, "connect_timeout=0": HostTime, "connect_timeout=7": 7 * time.Second} {
		cfg, err := pgxpool.ParseConfig("postgres://a,b/x?sslmode=disable&" + query)
		if err != nil {
			t.Fatal(err)
		}
		new(Dialer).UsePool(cfg)
		if got := cfg.ConnConfig.ConnectTimeout; got != want {
			t.Errorf("%q: %v, want %v", query, got, want)
		}
	}
}
