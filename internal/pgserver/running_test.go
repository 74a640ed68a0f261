package pgserver_test

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

func TestRunningFindsTheServerOfAFolder(t *testing.T) {
	t.Parallel()
	dir := pgtest.Dir(t)
	if _, ok := pgserver.Running(dir); ok {
		t.Fatal("a server in a folder that is not there")
	}
	s, err := pgserver.Start(t.Context(), pgserver.Config{Dir: dir, Unsafe: true})
	if err != nil {
		t.Fatal(err)
	}
	url, ok := pgserver.Running(dir)
	if !ok {
		t.Fatal("the running server was not found")
	}
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	_ = conn.Close(t.Context())
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	if _, ok := pgserver.Running(dir); ok {
		t.Error("found after it was stopped")
	}
}

// A lock that goes within a moment, as that of a stopped server does which a process
// just being started has still open, is waited for.
func TestStartWaitsForALockThatGoes(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	if err := start(t, config).Stop(); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(config.Dir, "lock"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(100*time.Millisecond, func() { _ = lock.Close() }).Stop()
	if err := start(t, config).Stop(); err != nil {
		t.Fatal(err)
	}
}
