package pgserver

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// Running returns the URL of the server that another process runs in dir, and
// whether there is one that is ready. Nothing is started or changed.
func Running(dir string) (databaseURL string, ok bool) {
	if !held(filepath.Join(dir, lockName)) {
		return "", false
	}
	note := readPIDFile(filepath.Join(dir, "data"))
	if note.status != ready {
		return "", false
	}
	return socketURL(note.socket, database), true
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
