package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postern/internal/owned"
)

// ErrInUse means that another process runs a server on the folder.
var ErrInUse = errors.New("the folder is in use by another process")

const (
	lockName = "lock"
	logName  = "postgres.log"
)

// openFolder opens the folder. It is the user's of this process, below folders in which
// nobody else can put another one in its place. Earlier releases gave it to the server's
// user: that is taken back by claimFolder.
func openFolder(dir string, owner account) (*os.Root, error) {
	return owned.Open(dir, owner.uid)
}

// makeFolder makes the folder when it is missing, and opens it.
func makeFolder(dir string, owner account) (*os.Root, error) {
	above, err := owned.Path(filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	if err := owner.canReach(above); err != nil {
		return nil, err
	}
	dir = filepath.Join(above, filepath.Base(dir))
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	folder, err := openFolder(dir, owner)
	if err != nil {
		return nil, err
	}
	if err := checkContents(folder); err != nil {
		folder.Close()
		return nil, err
	}
	return folder, nil
}

// claimFolder takes the folder for this process. The kernel gives it back when the
// returned file is closed, which the end of the process does too.
func claimFolder(ctx context.Context, folder *os.Root, owner account) (*os.File, error) {
	lock, err := owned.OpenFile(folder, lockName, os.O_RDWR|os.O_CREATE, 0o600, owner.uid)
	if err != nil {
		return nil, err
	}
	if err := takeLock(ctx, lock); err != nil {
		lock.Close()
		return nil, err
	}
	if err := closeFolder(folder, owner); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// closeFolder keeps others out of the folder. The server's user may pass through it to
// what is its own, and may not put anything there: root would open it.
func closeFolder(folder *os.Root, owner account) error {
	dir, err := folder.Open(".")
	if err != nil {
		return err
	}
	mode := os.FileMode(0o700)
	if owner.other {
		mode = 0o711
		err = dir.Chown(os.Geteuid(), os.Getegid())
	}
	return errors.Join(err, dir.Chmod(mode), dir.Close())
}

// checkContents refuses a folder that is for something else, such as a home directory
// given by mistake: its mode would be changed.
func checkContents(folder *os.Root) error {
	if _, err := folder.Lstat(lockName); err == nil {
		return nil
	}
	entries, err := fs.ReadDir(folder.FS(), ".")
	if err != nil {
		return err
	}
	if len(entries) > 0 {
		return fmt.Errorf("the folder holds other files, such as %s; give an empty one", entries[0].Name())
	}
	return nil
}

// takeLock takes the lock and notes in the file who has it. Somebody who only
// looks whether it is held, see Running, holds it for a moment as well, but as
// one of several, so for them it waits. It also waits a second for others: a process
// that this one is starting has all its open files for a moment, also one that was
// closed since, and the lock of a server that was stopped just now with it.
func takeLock(ctx context.Context, lock *os.File) error {
	fd := int(lock.Fd())
	until := time.Now().Add(time.Second)
	for {
		err := syscall.Flock(fd, syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return fmt.Errorf("lock: %w", err)
		}
		if syscall.Flock(fd, syscall.LOCK_SH|syscall.LOCK_NB) == nil {
			_ = syscall.Flock(fd, syscall.LOCK_UN)
		} else if time.Now().After(until) {
			return inUse(lock)
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("lock: %w", err)
		}
	}
	if err := lock.Truncate(0); err != nil {
		return err
	}
	_, err := lock.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0)
	return err
}

func inUse(lock *os.File) error {
	holder, _ := io.ReadAll(io.LimitReader(lock, 20))
	if pid := strings.TrimSpace(string(holder)); pid != "" {
		return fmt.Errorf("%w: process %s", ErrInUse, pid)
	}
	return ErrInUse
}

// maxLog is the size at which an old log is put aside when the server starts.
const maxLog = 16 << 20

// openLog opens what the server writes to; it is given the open file.
func openLog(folder *os.Root, owner account) (*os.File, error) {
	if info, err := folder.Lstat(logName); err == nil && info.Size() > maxLog {
		if err := folder.Rename(logName, logName+".old"); err != nil {
			return nil, err
		}
	}
	return owned.OpenFile(folder, logName, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600, owner.uid)
}

// whatItSaid adds the server's own last complaint, from offset on, to an error
// of its start.
func whatItSaid(log *os.File, offset int64, err error) error {
	var complaint string
	for lines := bufio.NewScanner(io.NewSectionReader(log, offset, math.MaxInt64-offset)); lines.Scan(); {
		if line := lines.Text(); strings.Contains(line, "FATAL:") || strings.Contains(line, "PANIC:") {
			complaint = line
		}
	}
	switch {
	case complaint == "":
		return fmt.Errorf("%w (see %s)", err, log.Name())
	case strings.Contains(complaint, "shared memory block"):
		return errRetry
	}
	return fmt.Errorf("%w: %s", err, complaint)
}
