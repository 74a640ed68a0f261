package database

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pg"
)

// ConnectTime bounds how long a command waits for the database to answer.
const ConnectTime = 10 * time.Second

// Connector makes all connections of this process to PostgreSQL.
type Connector struct {
	pg.Dialer
	look time.Duration // instead of watchEvery
}

// Connect opens one connection, with an error that says where and why not. It prepares
// nothing by name, so it works behind every pooler.
func (c *Connector) Connect(ctx context.Context, url string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, databaseURLError()
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	c.Use(cfg)
	ctx, cancel := context.WithTimeout(ctx, ConnectTime)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, &unreachableError{url, err}
	}
	return conn, nil
}

// unreachableError says where no connection could be made, and why.
type unreachableError struct {
	url string
	err error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("cannot use the database at %s: %s", Redacted(e.url), Reason(e.err))
}

func (e *unreachableError) Unwrap() error { return e.err }

const (
	// watchEvery is how often a command looks whether the database is still there.
	watchEvery = 10 * time.Second
	// watchTries is how many looks in a row must get no answer until it counts as gone.
	watchTries = 3
)

// Watched calls do with a connection and looks beside it, over others, whether that
// connection's server is still there: a server whose processes stand still, or another one
// in its place, ends what do waits for. A node has its heartbeat for that.
func (c *Connector) Watched(ctx context.Context, url string, do func(conn *pgx.Conn) error) error {
	conn, err := c.Connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	limited, cancel := context.WithTimeout(ctx, ConnectTime)
	defer cancel()
	server, err := pg.ServerStart(limited, conn)
	if err != nil {
		return fmt.Errorf("ask the database when it started: %w", err)
	}
	watching, stop := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer stop()
	watch.Go(func() { c.watch(watching, url, server) })
	return do(conn)
}

// watch abandons all connections when server is gone.
func (c *Connector) watch(ctx context.Context, url string, server time.Time) {
	tick := time.NewTicker(cmp.Or(c.look, watchEvery))
	defer tick.Stop()
	for tries := 0; tries < watchTries; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		var refusal *pgconn.PgError
		switch now, err := c.lookAgain(ctx, url); {
		case errors.As(err, &refusal): // an answer, as of a server that has no room for one more
			tries = 0
		case err != nil:
			tries++
		case now.Equal(server):
			tries = 0
		default:
			tries = watchTries
		}
	}
	c.Abandon(time.Now())
}

// lookAgain asks which server answers now, over a new connection.
func (c *Connector) lookAgain(ctx context.Context, url string) (server time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, ConnectTime)
	defer cancel()
	conn, err := c.Connect(ctx, url)
	if err != nil {
		return server, err
	}
	defer conn.Close(ctx)
	return pg.ServerStart(ctx, conn)
}

// databaseURLError does not repeat the URL: it may hold a password.
func databaseURLError() error {
	return errors.New("the database URL is malformed, or has an option that is not known: write postgres://user:password@host:port/name")
}

// Reason is the part of pgx's many lines that a person needs.
func Reason(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		if strings.HasPrefix(pg.Message, "Peer authentication failed") {
			return pg.Message + ": it is for that account of this machine only; run this with sudo -u"
		}
		return pg.Message
	}
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return strings.TrimSpace(lines[len(lines)-1])
}

// OpenPool opens a pool whose connections are named for pg_stat_activity.
func (c *Connector) OpenPool(ctx context.Context, url, name string, maxConns int, change func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, databaseURLError()
	}
	cfg.MaxConns = int32(max(1, maxConns))
	cfg.MaxConnLifetime = 5 * time.Minute
	cfg.MaxConnLifetimeJitter = time.Minute
	cfg.HealthCheckPeriod = 15 * time.Second
	cfg.PingTimeout = 2 * time.Second
	cfg.ConnConfig.RuntimeParams["application_name"] = "postern " + name
	c.UsePool(cfg)
	if change != nil {
		change(cfg)
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// PrepareNothing is for pools of commands, as connect is.
func PrepareNothing(cfg *pgxpool.Config) {
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
}

// Redacted removes the passwords from a database URL for messages.
func Redacted(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Scheme == "" { // the form host=... password=... is not taken apart
		return "the database URL"
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return "the database URL" // who knows what is a password there
	}
	for _, key := range []string{"password", "sslpassword"} {
		if query.Has(key) {
			query.Set(key, "xxxxx")
			u.RawQuery = query.Encode()
		}
	}
	return u.Redacted()
}
