package deb_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// A machine is this one as it is, with what is written put into a folder.
type machine struct{ written string }

// newMachine turns the calling process, the first one of its namespaces, into the
// first one of a machine whose root is below dir.
func newMachine(dir string) (*machine, error) {
	root := filepath.Join(dir, "root")
	for _, m := range []struct{ source, target, kind, options string }{
		{"", "/", "", ""}, // what is mounted from here on is not seen outside
		{"tmpfs", dir, "tmpfs", ""},
		{"overlay", root, "overlay", "lowerdir=/,upperdir=" + dir + "/written,workdir=" + dir + "/work"},
		{"proc", root + "/proc", "proc", ""},
		{"/dev", root + "/dev", "bind", ""},
		{"tmpfs", root + "/tmp", "tmpfs", "mode=1777"},
		{"tmpfs", root + "/run", "tmpfs", "mode=755"}, // so no systemd is running here
		{"tmpfs", root + "/usr/local", "tmpfs", "mode=755"},
	} {
		var flags uintptr
		switch m.kind {
		case "":
			flags = syscall.MS_PRIVATE | syscall.MS_REC
		case "bind":
			flags = syscall.MS_BIND | syscall.MS_REC
		}
		if err := syscall.Mount(m.source, m.target, m.kind, flags, m.options); err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.target, err)
		}
		if m.target == dir {
			for _, sub := range []string{"root", "written", "work"} {
				if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
					return nil, err
				}
			}
		}
	}
	written, err := os.Open(filepath.Join(dir, "written")) // out of reach after the change of root
	if err != nil {
		return nil, err
	}
	if err := errors.Join(syscall.Chroot(root), os.Chdir("/"), loopbackUp()); err != nil {
		return nil, err
	}
	// What a Postern of before has left on this machine is not there on that one.
	if err := errors.Join(os.RemoveAll("/var/lib/postern"), os.RemoveAll("/etc/postern")); err != nil {
		return nil, err
	}
	return &machine{fmt.Sprintf("/proc/self/fd/%d", written.Fd())}, nil
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

// left are the files that the machine has, or lacks, beyond those that may stay.
func (m *machine) left() (paths []string, err error) {
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

// sh runs commands of the shell, the first that fails ends them.
func sh(script string) (string, error) {
	cmd := exec.Command("/bin/sh", "-euc", script)
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive",
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w\n%s", script, err, out)
	}
	return string(out), nil
}
