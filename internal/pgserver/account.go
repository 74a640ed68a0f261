package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// account is the user that the server runs as.
type account struct {
	name     string
	uid, gid int
	other    bool // than the user of this process
}

// serverAccount is the user of this process, unless that is root.
func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		entry, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err := strconv.Atoi(entry.Uid)
		if err != nil || uid == 0 {
			continue
		}
		gid, err := strconv.Atoi(entry.Gid)
		if err != nil {
			continue
		}
		return account{name: name, uid: uid, gid: gid, other: true}, nil
	}
	return account{}, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// attributes start a process as this user, in a process group of its own so
// that a terminal's interrupt reaches this process only, which then stops it in
// its own order.
func (a account) attributes() *syscall.SysProcAttr {
	attributes := &syscall.SysProcAttr{Setpgid: true}
	if a.other {
		attributes.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
	return attributes
}

// give makes an open file this user's.
func (a account) give(f *os.File) error {
	if !a.other {
		return nil
	}
	return f.Chown(a.uid, a.gid)
}

// folder makes a folder in root that is this user's and closed to others, or takes the one
// that is there, which nobody but this process's user can have put there.
func (a account) folder(root *os.Root, name string) error {
	if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	info, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if !info.IsDir() {
		return fmt.Errorf("%s: not a folder", filepath.Join(root.Name(), name))
	}
	if !a.other {
		return nil
	}
	return root.Lchown(name, a.uid, a.gid)
}

// canReach says why the user cannot enter a folder, if so: a folder above it,
// or it, may be closed to others, as a home directory is.
func (a account) canReach(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	if !a.other {
		return nil
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !a.mayEnter(info) {
			return fmt.Errorf("user %s, as which root runs PostgreSQL, may not enter %s; use a folder elsewhere", a.name, dir)
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

func (a account) mayEnter(info os.FileInfo) bool {
	bit := os.FileMode(0o001)
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case int(stat.Uid) == a.uid:
			bit = 0o100
		case int(stat.Gid) == a.gid:
			bit = 0o010
		}
	}
	return info.Mode().Perm()&bit != 0
}

// Reachable says why a server cannot have its folder at dir, if so: for root,
// the folders above it must be open to the user that the server runs as. The
// folder itself need not exist.
func Reachable(dir string) error {
	owner, err := serverAccount()
	if err != nil {
		return err
	}
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	return owner.canReach(filepath.Dir(dir))
}
