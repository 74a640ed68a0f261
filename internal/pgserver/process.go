package pgserver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"postern/internal/owned"
)

// pidFile is what a postmaster notes in its data folder about itself: lines 1,
// 5 and 8 of postmaster.pid, of which the last is padded with spaces.
type pidFile struct {
	pid    int
	socket string // the folder that has its socket
	status string
}

// The statuses of a server that accepts connections: of one that writes, and of a
// standby, which only tests make of a folder.
const (
	ready   = "ready"
	standby = "standby"
)

// pidFileName is its path in the server's folder.
const pidFileName = "data/postmaster.pid"

// readNote returns the beginning of a file that the server's user writes, "" when there
// is none.
func readNote(folder *os.Root, name string, owner account) string {
	f, err := owned.OpenFile(folder, name, os.O_RDONLY, 0, owner.uid)
	if err != nil {
		return ""
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, 4096))
	if err != nil {
		return ""
	}
	return string(text)
}

// readPIDFile returns zero values for what is not there, or not yet.
func readPIDFile(folder *os.Root, owner account) pidFile {
	lines := strings.Split(readNote(folder, pidFileName, owner), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(lines[0]))
	if err != nil {
		return pidFile{}
	}
	note := pidFile{pid: pid}
	if len(lines) >= 8 {
		note.socket = lines[4]
		note.status = strings.TrimSpace(lines[7])
	}
	return note
}

// awaitOrphan waits for the end of a postmaster whose parent is gone: this
// process holds the folder's lock, so whoever started it has ended and its
// guard is stopping it. It is told to stop here too, in case the guard was
// killed. A pid file that nobody is behind is removed, because PostgreSQL
// would believe it when another process has got the number since.
func awaitOrphan(ctx context.Context, folder *os.Root, owner account) error {
	pid := readPIDFile(folder, owner).pid
	if pid == 0 {
		return nil
	}
	orphan := processAt(pid)
	if !orphan.isPostgres() || !orphan.worksIn(filepath.Join(folder.Name(), "data")) {
		err := folder.Remove(pidFileName)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		return err
	}
	_ = syscall.Kill(pid, syscall.SIGINT)
	for orphan.alive() {
		if err := pause(ctx); err != nil {
			return fmt.Errorf("wait for process %d of an earlier run: %w", pid, err)
		}
	}
	return nil
}

// process is one process, told from a later one of the same number by the time
// of its start.
type process struct {
	pid     int
	started string
}

func processAt(pid int) process {
	return process{pid: pid, started: statOf(pid).started}
}

// worksIn says whether the process is alive and has the folder as its working
// directory, as a postmaster has its data folder.
func (p process) worksIn(dir string) bool {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	cwd, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", p.pid))
	return err == nil && cwd == dir && p.alive()
}

// isPostgres tells a server's process from an admin's shell that stands in its folder, to
// which a number in a file of the server's user may lead.
func (p process) isPostgres() bool {
	program, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid))
	return err == nil && filepath.Base(strings.TrimSuffix(program, " (deleted)")) == "postgres"
}

// alive is false for a zombie: its work is done, and where nobody reaps it, as
// in a container without an init, it stays for ever.
func (p process) alive() bool {
	stat := statOf(p.pid)
	return stat.started != "" && stat.started == p.started && stat.state != "Z" && stat.state != "X"
}

// kill ends the process and returns when it has ended. The kernel is quick
// about it, unless the process is in an uninterruptible wait for a disk.
func (p process) kill() error {
	for p.alive() {
		if err := syscall.Kill(p.pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			return err
		}
		_ = pause(context.Background())
	}
	return nil
}

// killOrphans kills the PostgreSQL processes that work in a data folder which has no
// postmaster.
func killOrphans(data string) error {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return err
	}
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if orphan := processAt(pid); orphan.isPostgres() && orphan.worksIn(data) {
			if err := orphan.kill(); err != nil {
				return err
			}
		}
	}
	return nil
}

// children are the processes whose parent is pid.
func children(pid int) []process {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var found []process
	for _, entry := range entries {
		child, err := strconv.Atoi(entry.Name())
		if err != nil {
			continue
		}
		if stat := statOf(child); stat.parent == pid {
			found = append(found, process{pid: child, started: stat.started})
		}
	}
	return found
}

// stat is what proc_pid_stat(5) says of a process: fields 3, 4 and 22.
type stat struct {
	state   string
	parent  int
	started string
}

func statOf(pid int) stat {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}
	}
	// Field 2 is the command in parentheses and may hold anything.
	after := bytes.LastIndexByte(text, ')') + 1
	fields := strings.Fields(string(text[after:]))
	if len(fields) < 20 {
		return stat{}
	}
	parent, err := strconv.Atoi(fields[1])
	if err != nil {
		return stat{}
	}
	return stat{state: fields[0], parent: parent, started: fields[19]}
}
