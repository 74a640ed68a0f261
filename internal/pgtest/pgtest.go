// Package pgtest gives each test a PostgreSQL database of its own, so that all
// of them run in parallel.
//
// The first test of a process that asks for one starts a private server, whose
// data are not durable, and migrates a template; each database is a clone of
// it, dropped when its test ends. The server and its folder vanish with the
// process. POSTERN_TEST_DATABASE_URL names another server to use, as a user
// that may create databases.
//
// A test that cannot have its database fails; it is never skipped.
package pgtest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgserver"
)

// DB is one test's database.
type DB struct {
	URL  string
	Pool *pgxpool.Pool // of ten connections, made as they are needed
}

// patience bounds each step, so that a test never waits for ever.
const patience = 3 * time.Minute

// New returns a database with the whole schema and no rows.
func New(t testing.TB) *DB {
	t.Helper()
	return clone(t, shared, sharedSchema)
}

// Empty returns a database without a schema.
func Empty(t testing.TB) *DB {
	t.Helper()
	return clone(t, shared, bare)
}

// On is New on a server that the test has started itself.
func On(t testing.TB, server *pgserver.Server) *DB {
	t.Helper()
	return clone(t, func() (cluster, error) { return newCluster(server.URL()) }, schema)
}

// Server starts a server for this test alone, to be killed or tuned, and stops
// it when the test ends. It is durable unless config says otherwise. Without a
// Dir it gets one that the server's user can reach, which t.TempDir is not when
// root runs the tests; with a Dir, it can be started there again.
func Server(t testing.TB, config pgserver.Config) *pgserver.Server {
	t.Helper()
	if config.Dir == "" {
		config.Dir = Dir(t)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	server, err := pgserver.Start(ctx, config)
	if err != nil {
		// The log goes with the folder.
		log, _ := os.ReadFile(filepath.Join(config.Dir, "postgres.log"))
		t.Fatalf("%v; the end of its log:\n%s", err, log[max(0, len(log)-4000):])
	}
	t.Cleanup(func() {
		if err := server.Stop(); err != nil {
			t.Error(err)
		}
	})
	return server
}

// Dir returns the path of a folder, not made yet, where a server's user can
// have its data. It is removed when the test ends, or when a server that was
// given it as Temporary does.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := place()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// place returns a path that nobody has, in the system's folder for temporary
// files, or one of the usual ones when the server's user cannot go there.
func place() (string, error) {
	var failures []error
	for _, parent := range []string{os.TempDir(), "/tmp", "/var/tmp"} {
		dir := filepath.Join(parent, "postern-test-"+strings.ToLower(rand.Text()[:12]))
		err := pgserver.Reachable(dir)
		if err == nil {
			return dir, nil
		}
		failures = append(failures, err)
	}
	return "", errors.Join(failures...)
}

// clone makes a database from a template and drops it after the test.
func clone(t testing.TB, open func() (cluster, error), template func(context.Context, cluster) (string, error)) *DB {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := open()
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	source, err := template(ctx, c)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	name := "postern_test_" + strings.ToLower(rand.Text()[:16])
	if err := c.create(ctx, name, source); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() { drop(t, c, name) })

	db := &DB{URL: c.databaseURL(name)}
	if db.Pool, err = newPool(ctx, db.URL); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() { closePool(t, db.Pool) })
	return db
}

func newPool(ctx context.Context, address string) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(address)
	if err != nil {
		return nil, err
	}
	config.MaxConns = 10
	config.MinConns = 0
	return pgxpool.NewWithConfig(ctx, config)
}

// closePool fails the test when it has kept a connection.
func closePool(t testing.TB, pool *pgxpool.Pool) {
	closed := make(chan struct{})
	go func() {
		pool.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(patience):
		t.Errorf("pgtest: %d connections were never released to the pool", pool.Stat().AcquiredConns())
	}
}

func drop(t testing.TB, c cluster, name string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := c.drop(ctx, name); err != nil && c.answers(ctx) {
		t.Errorf("pgtest: %v", err)
	}
}

// cluster is a server to make databases on.
type cluster struct {
	admin string // URL of a database that is always there
}

func newCluster(admin string) (cluster, error) {
	if _, err := pgx.ParseConfig(admin); err != nil {
		return cluster{}, err
	}
	return cluster{admin: admin}, nil
}

func (c cluster) databaseURL(name string) string {
	u, err := url.Parse(c.admin)
	if err != nil || u.Scheme == "" {
		return c.admin + " dbname=" + name // the keyword form, in which the last one counts
	}
	u.Path = "/" + name
	return u.String()
}

// run calls do with a connection to one of the server's databases.
func (c cluster) run(ctx context.Context, address string, do func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, address)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return do(conn)
}

// create copies the template file by file, which before PostgreSQL 15 was the
// only way and is three times as fast as the way through the log.
func (c cluster) create(ctx context.Context, name, template string) error {
	return c.run(ctx, c.admin, func(conn *pgx.Conn) error {
		sql := fmt.Sprintf("create database %s template %s", name, template)
		major, err := strconv.Atoi(majorRelease.FindString(conn.PgConn().ParameterStatus("server_version")))
		if err == nil && major >= 15 {
			sql += " strategy file_copy"
		}
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("%s: %w", sql, err)
		}
		return nil
	})
}

var majorRelease = regexp.MustCompile(`^[0-9]+`)

func (c cluster) drop(ctx context.Context, name string) error {
	return c.run(ctx, c.admin, func(conn *pgx.Conn) error {
		if _, err := conn.Exec(ctx, fmt.Sprintf("drop database if exists %s with (force)", name)); err != nil {
			return fmt.Errorf("drop database %s: %w", name, err)
		}
		return nil
	})
}

// answers is false when the test has ended its server, whose databases then
// cannot be dropped and need not be.
func (c cluster) answers(ctx context.Context) bool {
	return c.run(ctx, c.admin, func(conn *pgx.Conn) error { return conn.Ping(ctx) }) == nil
}
