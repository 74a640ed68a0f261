package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgserver"
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
			return usagef("no database: give --database-url, set POSTERN_DATABASE_URL, or set [database] url in the configuration file")
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
	fmt.Fprintf(os.Stderr, "postern: waiting for the process that uses the private database in %s\n", dir)
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

// connect opens one connection, with an error that says where and why not.
func connect(ctx context.Context, url string) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return nil, databaseURLError()
	}
	ctx, cancel := context.WithTimeout(ctx, connectLimit)
	defer cancel()
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, fmt.Errorf("cannot use the database at %s: %s", redactURL(url), connectReason(err))
	}
	return conn, nil
}

// databaseURLError does not repeat the URL: it may hold a password.
func databaseURLError() error {
	return errors.New("the database URL is malformed: write postgres://user:password@host:port/name")
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
func openPool(ctx context.Context, url, name string, maxConns int, change func(*pgxpool.Config)) (*pgxpool.Pool, error) {
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, databaseURLError()
	}
	cfg.MaxConns = int32(max(1, maxConns))
	cfg.MaxConnLifetime = 5 * time.Minute
	cfg.MaxConnLifetimeJitter = time.Minute
	cfg.HealthCheckPeriod = 15 * time.Second
	cfg.ConnConfig.ConnectTimeout = 5 * time.Second
	cfg.ConnConfig.RuntimeParams["application_name"] = "postern " + name
	if change != nil {
		change(cfg)
	}
	return pgxpool.NewWithConfig(ctx, cfg)
}

// withPool runs a command's work on a small pool over a current schema.
func (a *app) withPool(ctx context.Context, do func(ctx context.Context, pool *pgxpool.Pool) error) error {
	return a.withDatabase(ctx, func(ctx context.Context, url string) error {
		conn, err := connect(ctx, url)
		if err != nil {
			return err
		}
		err = requireSchema(ctx, conn)
		_ = conn.Close(context.WithoutCancel(ctx))
		if err != nil {
			return err
		}
		pool, err := openPool(ctx, url, "command", 2, nil)
		if err != nil {
			return err
		}
		defer pool.Close()
		return do(ctx, pool)
	})
}
