package debian_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
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
	told chan string // by sd_notify(3)
}

// watchdogTime is what this init asks for in place of the unit's WatchdogSec.
const watchdogTime = 2 * time.Second

// startService starts a unit of Type=notify and returns when it says that it is ready.
// With socket units it gets their sockets, and no capability to open ports itself.
func startService(path string, sockets ...string) (*service, error) {
	u, err := readUnit(path)
	if err != nil {
		return nil, err
	}
	cmd, err := u.command()
	if err != nil {
		return nil, err
	}
	if u.one("Type") != "notify" || u.one("WatchdogSec") == "" {
		return nil, errors.New("the unit is not what this init knows")
	}
	s := &service{cmd: cmd, done: make(chan error, 1), told: make(chan string, 100)}
	if err := s.listen("/run/notify"); err != nil {
		return nil, err
	}
	if err := handOver(cmd, sockets); err != nil {
		return nil, err
	}
	cmd.Env = append(cmd.Env, "NOTIFY_SOCKET=/run/notify", fmt.Sprintf("WATCHDOG_USEC=%d", watchdogTime.Microseconds()))
	logs, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	cmd.Stdout = os.Stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		for lines := bufio.NewScanner(logs); lines.Scan(); {
			fmt.Fprintln(&s.said, lines.Text())
		}
		s.done <- cmd.Wait()
	}()
	return s, errors.Join(s.await("READY=1"), s.await("WATCHDOG=1"))
}

// handOver opens what socket units say and passes it to the process as
// sd_listen_fds(3) has it.
func handOver(cmd *exec.Cmd, sockets []string) error {
	if len(sockets) == 0 {
		return nil
	}
	var names []string
	for _, path := range sockets {
		u, err := readUnit(path)
		if err != nil {
			return err
		}
		ln, err := net.Listen("tcp", ":"+u.one("ListenStream"))
		if err != nil {
			return err
		}
		f, err := ln.(*net.TCPListener).File()
		if err != nil {
			return err
		}
		_ = ln.Close() // the process has the file
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		names = append(names, u.one("FileDescriptorName"))
	}
	cmd.SysProcAttr.AmbientCaps = nil
	cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	cmd.Args = append([]string{"sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, cmd.Args...)
	cmd.Path = "/bin/sh"
	return nil
}

// listen hears what the service tells its init.
func (s *service) listen(path string) error {
	_ = os.Remove(path) // of the service before
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return err
	}
	go func() {
		for text := make([]byte, 4096); ; {
			n, err := conn.Read(text)
			if err != nil {
				return
			}
			for sent := false; !sent; {
				select {
				case s.told <- string(text[:n]):
					sent = true
				default: // nobody has waited for long: a service must not either, and the news counts
					select {
					case <-s.told:
					default:
					}
				}
			}
		}
	}()
	return os.Chmod(path, 0o666)
}

// await waits until the service tells a state.
func (s *service) await(state string) error {
	deadline := time.After(machine.Patience)
	for {
		select {
		case text := <-s.told:
			if slices.Contains(strings.Split(text, "\n"), state) {
				return nil
			}
		case err := <-s.done:
			return fmt.Errorf("the service ended before %s: %v\n%s", state, err, &s.said)
		case <-deadline:
			return fmt.Errorf("the service does not say %s", state)
		}
	}
}

// reload does what ExecReload says.
func (s *service) reload() error {
	if err := s.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		return err
	}
	return errors.Join(s.await("RELOADING=1"), s.await("READY=1"))
}

// stop asks the service to end, as systemd does.
func (s *service) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.await("STOPPING=1"); err != nil {
		return err
	}
	deadline := time.After(machine.Patience)
	for {
		select {
		case <-s.told:
		case err := <-s.done:
			return err
		case <-deadline:
			return errors.New("the service does not end")
		}
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
