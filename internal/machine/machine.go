// Package machine gives a test a machine of its own: to install a package on, or to
// run as a container engine would. It is this machine as it is, with all that is
// written put aside.
//
// [Run] starts the test's own binary as the first process of new namespaces. There
// [Inside], which the test's TestMain calls, lives the life that the test has named: it
// reads what it needs from the outside, and [Enter] then mounts an overlay on / and
// changes the root to it. The machine has no network but its loopback, no systemd that
// runs, an empty /run for what the test needs, and nothing of Postern. With its first
// process the kernel ends all others on it, and the files are gone with the mount. It
// takes root.
package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Patience bounds each wait for a program, also on a machine with other things to do.
const Patience = 5 * time.Minute

const (
	lifeEnv = "POSTERN_TEST_MACHINE"     // what happens on the machine
	dirEnv  = "POSTERN_TEST_MACHINE_DIR" // where it is mounted, in its own namespace only
)

// Run lives the named life on a new machine, to its end, and returns what it printed.
func Run(t *testing.T, life string, env ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can make a machine of its own")
	}
	lifeline, ours, err := os.Pipe() // ends with this process, even by SIGKILL
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 3*Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(append(os.Environ(), env...), lifeEnv+"="+life, dirEnv+"="+t.TempDir())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS,
	}
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = lifeline, &out, &out
	err = cmd.Run()
	_ = lifeline.Close()
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	return out.String()
}

// Inside does nothing in a process that Run has not started. In one that it has, it
// lives the life and ends the process.
func Inside(lives map[string]func() error) {
	name := os.Getenv(lifeEnv)
	if name == "" {
		return
	}
	live, ok := lives[name]
	if !ok {
		fmt.Println("there is no life named", name)
		os.Exit(2)
	}
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1)) // nothing is ever written
		os.Exit(1)
	}()
	if err := live(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(0)
}

// Postern's own folders, which on the machine are not there at first.
var ownFolders = []string{"/var/lib/postern", "/etc/postern"}

// A Machine is one, seen from its first process.
type Machine struct{ written string }

// Enter turns the calling process into the first one of the machine.
func Enter() (*Machine, error) {
	dir := os.Getenv(dirEnv)
	root := filepath.Join(dir, "root")
	if err := mountAll(dir, root); err != nil {
		return nil, err
	}
	written, err := os.Open(filepath.Join(dir, "written")) // out of reach after the change of root
	if err != nil {
		return nil, err
	}
	if err := errors.Join(syscall.Chroot(root), os.Chdir("/"), loopbackUp()); err != nil {
		return nil, err
	}
	for _, own := range ownFolders {
		if err := os.RemoveAll(own); err != nil {
			return nil, err
		}
	}
	return &Machine{fmt.Sprintf("/proc/self/fd/%d", written.Fd())}, nil
}

func mountAll(dir, root string) error {
	// Mounts from here on are not seen outside.
	if err := syscall.Mount("", "/", "", syscall.MS_PRIVATE|syscall.MS_REC, ""); err != nil {
		return fmt.Errorf("part with the mounts outside: %w", err)
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	for _, sub := range []string{"root", "written", "work"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	for _, m := range []struct{ source, target, kind, options string }{
		{"overlay", root, "overlay", "lowerdir=/,upperdir=" + dir + "/written,workdir=" + dir + "/work"},
		{"proc", root + "/proc", "proc", ""},
		{"/dev", root + "/dev", "bind", ""},
		{"tmpfs", root + "/run", "tmpfs", "mode=755"},
	} {
		var flags uintptr
		if m.kind == "bind" {
			flags = syscall.MS_BIND | syscall.MS_REC
		}
		if err := syscall.Mount(m.source, m.target, m.kind, flags, m.options); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	return nil
}

// loopbackUp lets the machine, which has no network, reach itself.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// mayStay are the files that dpkg and adduser write for themselves.
var mayStay = regexp.MustCompile(`^(etc/\.pwd\.lock|etc/(passwd|group|shadow|gshadow|subuid|subgid)-?|` +
	`var/lib/dpkg/(status(-old)?|lock.*|triggers/.*|info/format|diversions.*|statoverride.*)|` +
	`var/log/(dpkg|alternatives)\.log|var/cache/(man|ldconfig|debconf)/.*)$`)

// Left are the files that the machine has, or lacks, beyond those that a package manager
// writes for itself.
func (m *Machine) Left() (paths []string, err error) {
	err = filepath.WalkDir(m.written+"/.", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		path = strings.TrimPrefix(path, m.written+"/")
		if e.IsDir() && !strings.Contains(path, "postern") {
			return nil // copied to be written into
		}
		if !mayStay.MatchString(path) && !gone(e, path) {
			paths = append(paths, path)
		}
		return nil
	})
	return paths, err
}

// gone says whether this is how the overlay notes that one of Postern's own is removed.
func gone(e fs.DirEntry, path string) bool {
	return e.Type()&fs.ModeCharDevice != 0 && strings.Contains(path, "postern")
}

// Shell runs commands, with those in /run/bin before the system's; the first that fails
// ends them. The error has what they said.
func Shell(script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-euc", script)
	cmd.Env = []string{
		"PATH=/run/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return string(out), nil
}

// Postgres starts a server as Debian has it, until the machine's end: a socket in
// /run/postgresql, on which an account of the machine is the role of its name, and port
// 5432 of the loopback, which wants a password.
func Postgres() error {
	_, err := Shell(`
mkdir -p /run/bin
for dir in /usr/bin /usr/lib/postgresql/*/bin; do [ -x "$dir/initdb" ] && bin=$dir; done
getent passwd postgres >/dev/null || useradd --system postgres
install -d -o postgres /run/postgresql /run/pg
cd /
runuser -u postgres -- "$bin/initdb" -D /run/pg/data --auth-local=peer --auth-host=scram-sha-256 --encoding=UTF8 --locale=C
runuser -u postgres -- "$bin/pg_ctl" -D /run/pg/data -w -t 120 -l /run/pg/log \
	-o "-c listen_addresses=127.0.0.1 -c unix_socket_directories=/run/postgresql" start
for name in createuser createdb psql; do ln -s "$bin/$name" /run/bin/$name; done
`)
	return err
}

// Step is a part of what is done in a machine.
type Step struct {
	Name string
	Do   func() error
}

// Steps does one after the other, and says how long each took. It ends with the first
// that fails.
func Steps(steps []Step) error {
	for _, step := range steps {
		began := time.Now()
		if err := step.Do(); err != nil {
			return fmt.Errorf("%s: %w", step.Name, err)
		}
		fmt.Printf("%s: done in %s\n", step.Name, time.Since(began).Round(time.Millisecond))
	}
	return nil
}
