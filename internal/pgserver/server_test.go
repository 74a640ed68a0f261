package pgserver_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// patience bounds what a test waits for, on a machine with other things to do.
const patience = 3 * time.Minute

func start(t *testing.T, config pgserver.Config) *pgserver.Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	server, err := pgserver.Start(ctx, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Stop() })
	return server
}

func connect(t *testing.T, server *pgserver.Server) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), server.URL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func execute(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query(t *testing.T, conn *pgx.Conn, sql string) (value string) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), sql).Scan(&value); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return value
}

func TestSettings(t *testing.T) {
	t.Parallel()
	durable := map[string]string{
		"fsync": "on", "full_page_writes": "on", "synchronous_commit": "on",
		"listen_addresses": "", "server_encoding": "UTF8", "application_name": "it's",
	}
	unsafe := map[string]string{
		"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off", "listen_addresses": "",
	}
	tests := []struct {
		name   string
		config pgserver.Config
		want   map[string]string
	}{
		{"durable by default", pgserver.Config{Settings: map[string]string{"application_name": "it's"}}, durable},
		{"unsafe", pgserver.Config{Unsafe: true}, unsafe},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.config.Dir = pgtest.Dir(t)
			conn := connect(t, start(t, test.config))
			for name, want := range test.want {
				if got := query(t, conn, "show "+name); got != want {
					t.Errorf("%s is %q, want %q", name, got, want)
				}
			}
		})
	}
}

// TestDataOutliveEveryEnd stops and kills a server and starts it again.
func TestDataOutliveEveryEnd(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t)}
	server := start(t, config)
	execute(t, connect(t, server), `create table kept (word text)`)
	ends := []struct {
		name string
		end  func() error
	}{
		{"stopped", func() error { return server.Stop() }},
		{"killed", func() error { return server.Kill() }},
		{"killed again", func() error { return server.Kill() }},
	}
	for _, end := range ends {
		execute(t, connect(t, server), `insert into kept values ('`+end.name+`')`)
		if err := end.end(); err != nil {
			t.Fatal(err)
		}
		select {
		case <-server.Done():
		default:
			t.Errorf("%s: the server has not ended", end.name)
		}
		server = start(t, config)
	}
	got := query(t, connect(t, server), `select string_agg(word, ', ' order by word) from kept`)
	if want := "killed, killed again, stopped"; got != want {
		t.Errorf("after all, the table holds %q, want %q", got, want)
	}
}

func TestAlterSystemWinsOverTheDefaults(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	server := start(t, config)
	execute(t, connect(t, server), `alter system set synchronous_standby_names = 'nobody'`)
	execute(t, connect(t, server), `alter system set jit = on`)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	conn := connect(t, start(t, config))
	if got := query(t, conn, `show synchronous_standby_names`); got != "nobody" {
		t.Errorf("synchronous_standby_names is %q", got)
	}
	if got := query(t, conn, `show jit`); got != "on" {
		t.Errorf("jit is %q", got)
	}
}

func TestSecondStartOnAFolderInUse(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	server := start(t, config)
	second, err := pgserver.Start(t.Context(), config)
	if !errors.Is(err, pgserver.ErrInUse) {
		t.Fatalf("second start: %v, %v, want ErrInUse", second, err)
	}
	if got := query(t, connect(t, server), `select 'well'`); got != "well" {
		t.Errorf("the first server is %q", got)
	}
}

func TestLongPathsAndOddCharacters(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(pgtest.Dir(t), strings.Repeat("long", 30), "it's, \"odd\"\\ %41")
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		t.Fatal(err)
	}
	server := start(t, pgserver.Config{Dir: dir, Unsafe: true})
	if got := query(t, connect(t, server), `select 'here'`); got != "here" {
		t.Error(got)
	}
}

func TestStalePIDFileOfAnotherProcess(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	if err := start(t, config).Stop(); err != nil {
		t.Fatal(err)
	}
	// This process has got the number of the postmaster that crashed.
	stale := filepath.Join(config.Dir, "data", "postmaster.pid")
	text := strings.Join([]string{itoa(os.Getpid()), filepath.Join(config.Dir, "data"), "1", "5432", "", "", "", "ready   ", ""}, "\n")
	if err := os.WriteFile(stale, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	connect(t, start(t, config))
}

func TestStartFailures(t *testing.T) {
	t.Parallel()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "letter.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Dir(full), 0o755); err != nil { // so that the server's user can get there
		t.Fatal(err)
	}
	tests := []struct {
		name   string
		config pgserver.Config
		want   string
	}{
		{"parent missing", pgserver.Config{Dir: filepath.Join(full, "no", "such")}, "no such file"},
		{"somebody else's folder", pgserver.Config{Dir: full}, "letter.txt"},
		{"unknown setting", pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true,
			Settings: map[string]string{"shared_bufers": "1MB"}}, "configuration file"},
		{"setting of two lines", pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true,
			Settings: map[string]string{"jit": "off\nfsync = off"}}, "one line"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server, err := pgserver.Start(t.Context(), test.config)
			if err == nil {
				_ = server.Stop()
				t.Fatal("it started")
			}
			if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error %q, want one line with %q", err, test.want)
			}
		})
	}
}

func TestStartGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true, Temporary: true}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := pgserver.Start(ctx, config); !errors.Is(err, context.Canceled) {
		t.Fatalf("start: %v, want context.Canceled", err)
	}
	if _, err := os.Stat(config.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
}

func TestTemporaryIsRemovedByStop(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true, Temporary: true}
	if err := start(t, config).Stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(config.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the temporary folder is still there: %v", err)
	}
}

// TestAProcessThatNoticesNothing: a backend that hangs when its postmaster is killed
// keeps the shared memory, and with it the folder, until it is killed as well.
func TestAProcessThatNoticesNothing(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t)}
	server := start(t, config)
	backend, err := strconv.Atoi(query(t, connect(t, server), `select pg_backend_pid()::text`))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(backend, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	// Kill ends the postmaster's children too; here only it is killed.
	if err := syscall.Kill(server.PID(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	<-server.Done()
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	if got := query(t, connect(t, start(t, config)), `select 'up'`); got != "up" {
		t.Errorf("the server says %q", got)
	}
}
