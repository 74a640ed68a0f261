package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pg"
	"postern/internal/pgserver"
	"postern/relay/queue"
)

// connectLimit bounds how long a command waits for the database to answer.
const connectLimit = 10 * time.Second

// withDatabase finds the database and calls do with its URL. A private server
// that is not running is started for the time of the call.
func (a *app) withDatabase(ctx context.Context, do func(ctx context.Context, url string) error) error {
	cfg, _, err := a.loadConfig()
	if err != nil {
		return err
	}
	return a.withDatabaseOf(ctx, cfg, do)
}

func (a *app) withDatabaseOf(ctx context.Context, cfg config, do func(ctx context.Context, url string) error) error {
	if cfg.Database.Private == "" {
		if cfg.Database.URL == "" {
			return usagef("no database: give --database-url, set POSTERN_DATABASE_URL, or set [database] url or private in the configuration file")
		}
		return do(ctx, cfg.Database.URL)
	}
	url, stop, err := privateDatabase(ctx, cfg.Database.Private)
	if err != nil {
		return err
	}
	defer stop()
	return do(ctx, url)
}

// privateDatabase returns the URL of the server in dir, starting it unless
// another process of ours runs it already. stop ends what was started.
func privateDatabase(ctx context.Context, dir string) (url string, stop func(), err error) {
	if url, ok := pgserver.Running(dir); ok { // a relay's: its lock would be waited for
		return url, func() {}, nil
	}
	server, err := startPrivate(ctx, dir)
	if errors.Is(err, pgserver.ErrInUse) {
		// Another command may be starting or stopping it at this moment.
		return runningDatabase(ctx, dir, err)
	}
	if err != nil {
		return "", nil, err
	}
	return server.URL(), func() { _ = server.Stop() }, nil
}

func startPrivate(ctx context.Context, dir string) (*pgserver.Server, error) {
	return pgserver.Start(ctx, pgserver.Config{Dir: dir}) // its errors name the folder
}

// tellWait says on the error output why nothing happens.
func tellWait(dir string) {
	fmt.Fprintf(os.Stderr, "postern: waiting for the process that uses the private database in %s\n", printable(dir))
}

// awaitPrivate starts the server in dir for a process that stays up. A command that
// was started just before has the folder for a moment.
func awaitPrivate(ctx context.Context, dir string) (*pgserver.Server, error) {
	_, told := pgserver.Running(dir)
	if told {
		tellWait(dir)
	}
	server, err := startPrivate(ctx, dir)
	for until := time.Now().Add(connectLimit); errors.Is(err, pgserver.ErrInUse) && time.Now().Before(until); {
		if !told {
			told = true
			tellWait(dir)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
			server, err = startPrivate(ctx, dir)
		}
	}
	if errors.Is(err, pgserver.ErrInUse) {
		err = fmt.Errorf("%w: stop it, or give this node a folder of its own; nodes that share a database need one by [database] url", err)
	}
	return server, err
}

// runningDatabase waits until the process that has dir runs a server that is ready.
func runningDatabase(ctx context.Context, dir string, inUse error) (url string, stop func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	for told := false; ; {
		if url, ok := pgserver.Running(dir); ok {
			return url, func() {}, nil
		}
		if !told {
			told = true
			tellWait(dir)
		}
		select {
		case <-ctx.Done():
			return "", nil, inUse
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// connector makes all connections of this process to PostgreSQL.
type connector struct {
	pg.Dialer
	look time.Duration // instead of watchEvery
}

// connect opens one connection, with an error that says where and why not. It prepares
// nothing by name, so it works behind every pooler.
func (c *connector) connect(ctx context.Context, url string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, databaseURLError()
	}
	cfg.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	c.Use(cfg)
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
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
	return fmt.Sprintf("cannot use the database at %s: %s", redactURL(e.url), connectReason(e.err))
}

func (e *unreachableError) Unwrap() error { return e.err }

const (
	// watchEvery is how often a command looks whether the database is still there.
	watchEvery = 10 * time.Second
	// watchTries is how many looks in a row must get no answer until it counts as gone.
	watchTries = 3
)

// watched calls do with a connection and looks beside it, over others, whether that
// connection's server is still there: a server whose processes stand still, or another one
// in its place, ends what do waits for. A node has its heartbeat for that.
func (c *connector) watched(ctx context.Context, url string, do func(conn *pgx.Conn) error) error {
	conn, err := c.connect(ctx, url)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	limited, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	server, err := queue.ServerStart(limited, conn)
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
func (c *connector) watch(ctx context.Context, url string, server time.Time) {
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
func (c *connector) lookAgain(ctx context.Context, url string) (server time.Time, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := c.connect(ctx, url)
	if err != nil {
		return server, err
	}
	defer conn.Close(ctx)
	return queue.ServerStart(ctx, conn)
}

// databaseURLError does not repeat the URL: it may hold a password.
func databaseURLError() error {
	return errors.New("the database URL is malformed, or has an option that is not known: write postgres://user:password@host:port/name")
}

// connectReason is the part of pgx's many lines that a person needs.
func connectReason(err error) string {
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

// openPool opens a pool whose connections are named for pg_stat_activity.
func (c *connector) openPool(ctx context.Context, url, name string, maxConns int, change func(*pgxpool.Config)) (*pgxpool.Pool, error) {
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

// prepareNothing is for pools of commands, as connect is.
func prepareNothing(cfg *pgxpool.Config) {
	cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
}

// withPool runs a command's work on a small pool over a current schema.
func (a *app) withPool(ctx context.Context, do func(ctx context.Context, pool *pgxpool.Pool) error) error {
	return a.withDatabase(ctx, func(ctx context.Context, url string) error {
		return a.database.watched(ctx, url, func(conn *pgx.Conn) error {
			err := requireSchema(ctx, conn)
			_ = conn.Close(context.WithoutCancel(ctx))
			if err != nil {
				return err
			}
			pool, err := a.database.openPool(ctx, url, "command", 2, prepareNothing)
			if err != nil {
				return err
			}
			defer pool.Close()
			return do(ctx, pool)
		})
	})
}
