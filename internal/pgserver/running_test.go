package pgserver_test

import (
	"os"
	"path/filepath"
	"sync"
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
	awaitGone(t, dir)
}

// A lock that goes within a moment, as that of a stopped server does which a process
// just being started has still open, is waited for.
func TestStartWaitsForALockThatGoes(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	if err := start(t, config).Stop(); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(config.Dir, "lock")
	lock, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		t.Fatal(err)
	}
	// It goes when the start has opened the file, and so has found it locked.
	var going sync.WaitGroup
	going.Go(func() {
		for opened(path) < 2 && t.Context().Err() == nil {
			time.Sleep(time.Millisecond)
		}
		_ = lock.Close()
	})
	defer going.Wait()
	if err := start(t, config).Stop(); err != nil {
		t.Fatal(err)
	}
}

// opened counts how often this process has a file open.
func opened(path string) (n int) {
	links, _ := filepath.Glob("/proc/self/fd/*")
	for _, link := range links {
		if to, _ := os.Readlink(link); to == path {
			n++
		}
	}
	return n
}
