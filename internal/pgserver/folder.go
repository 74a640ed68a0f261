package pgserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrInUse means that another process runs a server on the folder.
var ErrInUse = errors.New("the folder is in use by another process")

const (
	lockName = "lock"
	logName  = "postgres.log"
)

// claimFolder makes the folder when it is missing and takes it for this
// process. The kernel gives it back when the returned file is closed, which the
// end of the process does too.
func claimFolder(ctx context.Context, dir string, owner account) (*os.File, error) {
	if err := owner.canReach(filepath.Dir(dir)); err != nil {
		return nil, err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	if err := checkContents(dir); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := takeLock(ctx, lock); err != nil {
		lock.Close()
		return nil, err
	}
	if err := errors.Join(owner.take(dir), os.Chmod(dir, 0o700)); err != nil {
		lock.Close()
		return nil, err
	}
	return lock, nil
}

// checkContents refuses a folder that is somebody else's, such as a home
// directory given by mistake: its owner and mode would be changed.
func checkContents(dir string) error {
	if _, err := os.Lstat(filepath.Join(dir, lockName)); err == nil {
		return nil
	}
	entries, err := os.ReadDir(dir)
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

func openLog(dir string, owner account) (*os.File, error) {
	name := filepath.Join(dir, logName)
	if info, err := os.Stat(name); err == nil && info.Size() > maxLog {
		if err := os.Rename(name, name+".old"); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	if err := owner.take(name); err != nil {
		log.Close()
		return nil, err
	}
	return log, nil
}

// whatItSaid adds the server's own last complaint, from offset on, to an error
// of its start.
func whatItSaid(dir string, offset int64, err error) error {
	log, openErr := os.Open(filepath.Join(dir, logName))
	if openErr != nil {
		return err
	}
	defer log.Close()
	if _, seekErr := log.Seek(offset, io.SeekStart); seekErr != nil {
		return err
	}
	var complaint string
	for lines := bufio.NewScanner(log); lines.Scan(); {
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
