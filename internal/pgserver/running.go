package pgserver

import (
	"errors"
	"os"
	"syscall"

	"postern/internal/owned"
)

// Running returns the URL of the server that another process runs in dir, and
// whether there is one that is ready. Nothing is started or changed.
//
// In a folder that is not ours there is none for us: its owner would hear what the
// server is told.
func Running(dir string) (databaseURL string, ok bool) {
	owner, err := serverAccount()
	if err != nil {
		return "", false
	}
	folder, err := openFolder(dir, owner)
	if err != nil {
		return "", false
	}
	defer folder.Close()
	if !held(folder, owner) {
		return "", false
	}
	note := readPIDFile(folder, owner)
	if note.status != ready {
		return "", false
	}
	return socketURL(note.socket, database), true
}

// held reports that another process has the lock. A shared lock is asked for, so
// that two who look at the same moment do not see each other.
func held(folder *os.Root, owner account) bool {
	f, err := owned.OpenFile(folder, lockName, os.O_RDONLY, 0, owner.uid)
	if err != nil {
		return false
	}
	defer f.Close()
	return errors.Is(syscall.Flock(int(f.Fd()), syscall.LOCK_SH|syscall.LOCK_NB), syscall.EWOULDBLOCK)
}
