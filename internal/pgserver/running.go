package pgserver

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Running returns the URL of the server that another process runs in dir, and
// whether there is one that is ready. Nothing is started or changed.
func Running(dir string) (databaseURL string, ok bool) {
	if !held(filepath.Join(dir, lockName)) {
		return "", false
	}
	// The server's own note of where it listens: the fifth line is the folder of
	// the socket, the eighth its state.
	note, err := os.ReadFile(filepath.Join(dir, "data", "postmaster.pid"))
	if err != nil {
		return "", false
	}
	lines := strings.Split(string(note), "\n")
	if len(lines) < 8 || strings.TrimSpace(lines[7]) != "ready" {
		return "", false
	}
	u := url.URL{
		Scheme: "postgres", User: url.User(role), Path: "/" + database,
		RawQuery: url.Values{"host": {strings.TrimSpace(lines[4])}}.Encode(),
	}
	return u.String(), true
}

// held reports that another process has the lock. A shared lock is asked for, so
// that two who look at the same moment do not see each other.
func held(name string) bool {
	f, err := os.Open(name)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}
