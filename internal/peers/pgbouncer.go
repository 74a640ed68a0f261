package peers

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"postern/internal/serve"
)

// A Pooler is a running PgBouncer in front of a PostgreSQL server.
type Pooler struct {
	Port int // on 127.0.0.1

	dir     string
	process *process
}

// PoolerConfig says what pooler to run.
type PoolerConfig struct {
	Mode    string // "session" or "transaction"
	Host    string // of the server, which trusts whoever comes over TCP
	User    string // as whom to connect to it
	Servers int    // connections to it, at most
	First   string // what each of them runs first; without quotes
}

// pgbouncerConfig lets everybody in, as one user of the server. A connection of the pool
// that breaks is made again without the pause of 15 s.
const pgbouncerConfig = `[databases]
* = host=%s port=5432 user=%s connect_query='%s'
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = %d
max_client_conn = 500
server_login_retry = 1
`

// pgbouncerUID is the user that PgBouncer runs as for root, whom it refuses.
const pgbouncerUID = 64204

// StartPooler starts a PgBouncer for the time of the test.
func StartPooler(t testing.TB, config PoolerConfig) *Pooler {
	t.Helper()
	p, err := requireCache(t).runPooler(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the pooler:\n%s", p.Log())
		}
		p.Close()
	})
	return p
}

// runPooler starts a PgBouncer; the context bounds the start.
func (c Cache) runPooler(ctx context.Context, config PoolerConfig) (*Pooler, error) {
	p := &Pooler{}
	var err error
	if p.dir, err = serverDir("", "pgbouncer"); err != nil {
		return nil, fmt.Errorf("prepare pgbouncer: %w", err)
	}
	if err := c.startPooler(ctx, p, config); err != nil {
		log := p.Log()
		p.Close()
		return nil, fmt.Errorf("start pgbouncer: %w\n%s", err, log)
	}
	return p, nil
}

// startPooler runs a copy of the program, whose user may not be able to enter the cache.
func (c Cache) startPooler(ctx context.Context, p *Pooler, config PoolerConfig) error {
	program, err := c.lookPath("pgbouncer")
	if err != nil {
		return err
	}
	ours := filepath.Join(p.dir, "pgbouncer")
	if err := copyFile(program, ours, 0o755); err != nil {
		return err
	}
	if err := c.copyLibraries(program, p.dir); err != nil {
		return err
	}
	if p.Port, err = serve.FreePort(); err != nil {
		return err
	}
	text := fmt.Sprintf(pgbouncerConfig, config.Host, config.User, cmp.Or(config.First, "select 1"), p.Port, config.Mode, config.Servers)
	file := filepath.Join(p.dir, "pgbouncer.ini")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		return err
	}
	env := []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "LD_LIBRARY_PATH=" + p.dir}
	if p.process, err = startProcess([]string{ours, file}, env, p.logFile(), pgbouncerUID); err != nil {
		return err
	}
	return p.process.ready(ctx, loopback(p.Port), true)
}

func (p *Pooler) logFile() string { return filepath.Join(p.dir, "pgbouncer.log") }

// Log is what it has written to its log.
func (p *Pooler) Log() string { return readAll(p.logFile()) }

// Close ends it and removes its folder.
func (p *Pooler) Close() {
	if p.process != nil {
		p.process.stop()
	}
	_ = os.RemoveAll(p.dir) // a leftover in the temporary folder does no harm
}
