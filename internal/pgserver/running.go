package pgserver

import (
	"errors"
	"os"
	"path/filepath"
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

// Made reports whether dir holds a server's data, and why Start would refuse the folder,
// or the one that it is to be made in. Nothing is started or changed.
func Made(dir string) (bool, error) {
	owner, err := serverAccount()
	if err != nil {
		return false, err
	}
	folder, err := openFolder(dir, owner)
	if errors.Is(err, os.ErrNotExist) {
		_, err := owned.Path(filepath.Dir(dir))
		return false, err
	}
	if err != nil {
		return false, err
	}
	defer folder.Close()
	_, err = folder.Lstat("data")
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
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
