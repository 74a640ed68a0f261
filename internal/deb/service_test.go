package deb_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"postern/internal/machine"
)

// A unit is a service file: of each key all values.
type unit map[string][]string

func readUnit(path string) (unit, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	u := unit{}
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if key, value, ok := strings.Cut(line, "="); ok && !strings.HasPrefix(line, "#") {
			u[key] = append(u[key], value)
		}
	}
	return u, nil
}

func (u unit) one(key string) string {
	if len(u[key]) != 1 {
		return ""
	}
	return u[key][0]
}

// A service is what a plain init makes of a unit: the account, folders, environment,
// capabilities and limits are those of systemd, the confinement is not.
type service struct {
	cmd  *exec.Cmd
	said strings.Builder
	done chan error
}

// startService starts a unit and returns when the log says that it is ready.
func startService(path string) (*service, error) {
	u, err := readUnit(path)
	if err != nil {
		return nil, err
	}
	cmd, err := u.command()
	if err != nil {
		return nil, err
	}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	s := &service{cmd: cmd, done: make(chan error, 1)}
	ready := make(chan struct{})
	go s.follow(logs, ready)
	select {
	case <-ready:
		return s, nil
	case err := <-s.done:
		return nil, fmt.Errorf("the service ended before it was ready: %w\n%s", err, &s.said)
	case <-time.After(machine.Patience):
		return nil, fmt.Errorf("the service is not ready after %s", machine.Patience)
	}
}

func (s *service) follow(logs io.Reader, ready chan<- struct{}) {
	for lines := bufio.NewScanner(logs); lines.Scan(); {
		fmt.Fprintln(&s.said, lines.Text())
		if strings.Contains(lines.Text(), "postern is ready") {
			close(ready)
		}
	}
	err := s.cmd.Wait()
	if err == nil && !strings.Contains(s.said.String(), "postern is ready") {
		err = errors.New("status 0")
	}
	s.done <- err
}

// stop asks the service to end, as systemd does.
func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case err := <-s.done:
		return err
	case <-time.After(machine.Patience):
		return fmt.Errorf("the service does not end:\n%s", &s.said)
	}
}

func (u unit) command() (*exec.Cmd, error) {
	who, err := user.Lookup(u.one("User"))
	if err != nil {
		return nil, err
	}
	uid, err1 := strconv.Atoi(who.Uid)
	gid, err2 := strconv.Atoi(who.Gid)
	umask, err3 := strconv.ParseInt(u.one("UMask"), 8, 32)
	files, err4 := strconv.ParseUint(u.one("LimitNOFILE"), 10, 64)
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, err
	}
	if err := errors.Join(u.folders("/var/lib", "State", uid, gid), u.folders("/run", "Runtime", uid, gid)); err != nil {
		return nil, err
	}
	if u.one("AmbientCapabilities") != "CAP_NET_BIND_SERVICE" {
		return nil, fmt.Errorf("capabilities %q: this init knows one only", u["AmbientCapabilities"])
	}
	args := strings.Fields(u.one("ExecStart"))
	if len(args) == 0 {
		return nil, errors.New("the unit has not one ExecStart")
	}
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Env = append([]string{"PATH=/usr/local/bin:/usr/bin:/bin", "USER=" + who.Username}, u["Environment"]...)
	cmd.Dir = "/"
	const netBindService = 10
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)},
		AmbientCaps: []uintptr{netBindService},
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil, err
	}
	files = min(files, limit.Max) // root of a container may not raise it
	syscall.Umask(int(umask))
	return cmd, syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: files, Max: files})
}

// folders makes those of StateDirectory or RuntimeDirectory.
func (u unit) folders(parent, kind string, uid, gid int) error {
	mode, err := strconv.ParseUint(u.one(kind+"DirectoryMode"), 8, 32)
	if err != nil {
		return err
	}
	for _, name := range strings.Fields(u.one(kind + "Directory")) {
		dir := filepath.Join(parent, name)
		if err := errors.Join(os.MkdirAll(dir, os.FileMode(mode)), os.Chown(dir, uid, gid), os.Chmod(dir, os.FileMode(mode))); err != nil {
			return err
		}
	}
	return nil
}
