package rig

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/internal/smtptest"
)

// Patience is how long the rig waits for what must come: long, for a busy machine.
const Patience = 5 * time.Minute

// The account that Rig adds. It may send as anybody in Domain.
const (
	User     = "load@" + Domain
	Password = "correct horse battery staple"
	Domain   = "load.test"
)

// Rig is one installation of the relay: a database, an account and a folder.
type Rig struct {
	t      testing.TB
	dir    string
	binary string
	url    string
	cert   string
	key    string
	tls    *tls.Config
	pgDir  string
	pool   *pgxpool.Pool
	sent   atomic.Int64 // messages of its loads: no two of them are equal

	mu       sync.Mutex
	postgres *pgserver.Server // nil: a server that other rigs use too
}

// New migrates a database and adds User to it. With own it has a PostgreSQL server
// of its own, to be killed. Both kinds are durable.
func New(t testing.TB, own bool) *Rig {
	t.Helper()
	r := &Rig{t: t, dir: t.TempDir(), binary: binary(t, "")}
	if own {
		r.pgDir = pgtest.Dir(t)
		r.StartPostgres()
		r.url = r.server().URL()
	} else {
		r.url = newDatabase(t)
	}
	r.begin()
	return r
}

// begin migrates the database and adds User.
func (r *Rig) begin() {
	r.t.Helper()
	r.certificates()
	pool, err := pgxpool.New(r.t.Context(), r.url)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(pool.Close)
	r.pool = pool
	r.Postern("", "migrate")
	r.AddUser(User)
}

func (r *Rig) certificates() {
	r.t.Helper()
	ca := smtptest.NewCA(r.t)
	r.cert, r.key = ca.Leaf(r.t, "relay.test").WriteFiles(r.t, r.dir)
	r.tls = ca.ClientConfig("relay.test")
	r.tls.ClientSessionCache = tls.NewLRUClientSessionCache(0)
}

// AddUser adds an account with Password that may send as anybody in Domain.
func (r *Rig) AddUser(name string) {
	r.t.Helper()
	r.Postern(Password, "user", "add", name, "--password-stdin", "--sender", "*@"+Domain)
}

// RouteTo makes the sink the upstream of all mail.
func (r *Rig) RouteTo(s *Sink, connections int) {
	r.t.Helper()
	r.Postern("", "upstream", "add", "sink", "--host", s.Addr(), "--tls", "none", "--connections", strconv.Itoa(connections))
	r.Postern("", "route", "add", "--via", "sink")
}

// Next is the installation with the programs of the version after this one: the same
// database and folder, for nodes and commands of that version.
func (r *Rig) Next() *Rig {
	r.t.Helper()
	return &Rig{t: r.t, dir: r.dir, binary: binary(r.t, nextTag), url: r.url, cert: r.cert, key: r.key, tls: r.tls, pool: r.pool}
}

// Refused runs a command of the relay that must fail, and returns what it complained.
func (r *Rig) Refused(args ...string) string {
	r.t.Helper()
	out, complaint, err := r.command("", args...)
	if err == nil {
		r.t.Fatalf("postern %s succeeded: %s", strings.Join(args, " "), out)
	}
	return complaint
}

// Postern runs a command of the relay to its end and returns what it printed.
func (r *Rig) Postern(stdin string, args ...string) string {
	r.t.Helper()
	out, complaint, err := r.command(stdin, args...)
	if err != nil {
		r.t.Fatalf("postern %s: %v: %s", strings.Join(args, " "), err, complaint)
	}
	return out
}

func (r *Rig) command(stdin string, args ...string) (stdout, complaint string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := r.Command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	return string(out), stderr.String(), err
}

// Command is a command of the relay, not yet started, which is killed when ctx ends.
func (r *Rig) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, r.binary, args...)
	cmd.Env = append(os.Environ(), "POSTERN_DATABASE_URL="+r.url, r.sealing())
	cmd.Dir = r.dir
	return cmd
}

// sealing is the variable that names the file of the sealing keys, which all nodes share.
func (r *Rig) sealing() string {
	return "POSTERN_SECRET_KEY_FILE=" + filepath.Join(r.dir, "secret.key")
}

// Count returns the number that a query gives.
func (r *Rig) Count(ctx context.Context, sql string, args ...any) (int, error) {
	var n int
	if err := r.pool.QueryRow(ctx, sql, args...).Scan(&n); err != nil {
		return 0, fmt.Errorf("count: %w", err)
	}
	return n, nil
}

// Text returns the text that a query gives.
func (r *Rig) Text(ctx context.Context, sql string, args ...any) (string, error) {
	var text string
	if err := r.pool.QueryRow(ctx, sql, args...).Scan(&text); err != nil {
		return "", fmt.Errorf("text: %w", err)
	}
	return text, nil
}

// Texts returns the texts that a query gives, a row each.
func (r *Rig) Texts(ctx context.Context, sql string, args ...any) ([]string, error) {
	rows, err := r.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, fmt.Errorf("texts: %w", err)
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

func (r *Rig) server() *pgserver.Server {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.postgres
}

// StartPostgres starts the rig's own server, again after it was ended.
func (r *Rig) StartPostgres() {
	r.t.Helper()
	server := pgtest.Server(r.t, pgserver.Config{Dir: r.pgDir})
	r.mu.Lock()
	defer r.mu.Unlock()
	r.postgres = server
}

// StopPostgres stops the rig's own server in good order.
func (r *Rig) StopPostgres() {
	r.t.Helper()
	if err := r.server().Stop(); err != nil {
		r.t.Fatal(err)
	}
}

// KillPostgres ends the rig's own server by SIGKILL: all its processes together, or
// only the postmaster, whose children then notice it at a moment of their own.
func (r *Rig) KillPostgres(all bool) {
	r.t.Helper()
	server := r.server()
	if !all {
		if err := syscall.Kill(server.PID(), syscall.SIGKILL); err != nil {
			r.t.Fatalf("kill the postmaster: %v", err)
		}
	}
	if err := server.Kill(); err != nil {
		r.t.Fatal(err)
	}
}

// cluster is the durable server of the rigs that have none of their own. It ends
// with the process.
var cluster struct {
	start  sync.Once
	server *pgserver.Server
	err    error
	names  int
	mu     sync.Mutex
}

// newDatabase makes a database on the server that rigs share.
func newDatabase(t testing.TB) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Patience)
	defer cancel()
	cluster.start.Do(func() {
		dir := pgtest.Dir(t) + "-shared" // beside the folder that goes with this test
		cluster.server, cluster.err = pgserver.Start(ctx, pgserver.Config{Dir: dir, Temporary: true,
			Settings: map[string]string{"max_connections": "400"}}) // thirty for a node, and many run concurrently
	})
	if cluster.err != nil {
		t.Fatal(cluster.err)
	}
	cluster.mu.Lock()
	defer cluster.mu.Unlock()
	cluster.names++
	name := "rig" + strconv.Itoa(cluster.names)
	conn, err := pgx.Connect(ctx, cluster.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	if _, err := conn.Exec(ctx, "create database "+name); err != nil {
		t.Fatalf("create database %s: %v", name, err)
	}
	u, err := url.Parse(cluster.server.URL())
	if err != nil {
		t.Fatal(err)
	}
	u.Path = "/" + name
	return u.String()
}
