package owned

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// errChanged means that a name led to another file a moment ago. In a folder of ours
// nobody can do that.
var errChanged = errors.New("was replaced while it was opened")

// Path returns the real path of a folder that is there, all links in it followed, when
// nobody but root and we can make the path lead elsewhere: every folder from / on, and
// the last one, is root's or ours, and others may write to none of them, unless its
// sticky bit keeps them from moving what is not theirs. The error is a [Fault] else.
func Path(dir string) (string, error) {
	real, _, err := walk(dir, above)
	return real, err
}

// Open opens a folder whose content we trust: its path is as for [Path], and it is itself
// ours, or one of those accounts', and others may write to it under no condition.
func Open(dir string, accounts ...int) (*os.Root, error) {
	real, info, err := walk(dir, func(name string, info fs.FileInfo, last bool) error {
		if last {
			return trusted(name, info, accounts)
		}
		return above(name, info, last)
	})
	if err != nil {
		return nil, err
	}
	root, err := os.OpenRoot(real)
	if err != nil {
		return nil, err
	}
	// The folder may be another account's, below a sticky one: that account could move it.
	opened, err := root.Stat(".")
	if err == nil && !os.SameFile(info, opened) {
		err = &fs.PathError{Op: "open", Path: real, Err: errChanged}
	}
	if err != nil {
		root.Close()
		return nil, err
	}
	return root, nil
}

// maxLinks is how many links a path may have, as in Linux.
const maxLinks = 40

// walk follows a path name by name and has each folder judged before it looks into it. A
// link must be root's or ours, or its folder's owner could not be trusted either.
func walk(path string, judge func(name string, info fs.FileInfo, last bool) error) (string, fs.FileInfo, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", nil, err
	}
	at, rest, links := "/", names(path), 0
	for {
		info, err := os.Lstat(at)
		if err != nil {
			return "", nil, err
		}
		if info.Mode().Type() == fs.ModeSymlink {
			if links++; links > maxLinks {
				return "", nil, &fs.PathError{Op: "open", Path: path, Err: syscall.ELOOP}
			}
			if err := owner(at, info, nil); err != nil {
				return "", nil, err
			}
			target, err := os.Readlink(at)
			if err != nil {
				return "", nil, err
			}
			rest = append(names(target), rest...)
			if at = filepath.Dir(at); filepath.IsAbs(target) {
				at = "/"
			}
		} else if err := judge(at, info, len(rest) == 0); err != nil {
			return "", nil, err
		} else if len(rest) == 0 {
			return at, info, nil
		}
		if len(rest) > 0 {
			at, rest = filepath.Join(at, rest[0]), rest[1:]
		}
	}
}

func names(path string) []string {
	return slices.DeleteFunc(strings.Split(path, "/"), func(name string) bool { return name == "" || name == "." })
}

// above judges a folder that ours lies in.
func above(name string, info fs.FileInfo, _ bool) error {
	if err := isFolder(name, info); err != nil {
		return err
	}
	if id := ownerOf(info); id != 0 && id != os.Geteuid() {
		return notOurs(name, id)
	}
	if info.Mode()&fs.ModeSticky != 0 {
		return nil
	}
	return unshared(name, info)
}

// trusted judges a folder that is ours.
func trusted(name string, info fs.FileInfo, accounts []int) error {
	if err := isFolder(name, info); err != nil {
		return err
	}
	id := ownerOf(info)
	if id != os.Geteuid() && !slices.Contains(accounts, id) {
		return notOurs(name, id)
	}
	return unshared(name, info)
}

func notOurs(name string, owner int) error {
	return &Fault{name, fmt.Sprintf("it belongs to %s and not to %s: run this as the user that it belongs to, or use another folder", userName(owner), userName(os.Geteuid()))}
}

func isFolder(name string, info fs.FileInfo) error {
	if !info.IsDir() {
		return &fs.PathError{Op: "open", Path: name, Err: syscall.ENOTDIR}
	}
	return nil
}

// unshared refuses a folder that others may write to. The process's own groups are no
// others, unless it is root: on many systems each user has a group alone, and new
// folders are the group's to write to.
func unshared(name string, info fs.FileInfo) error {
	mode := info.Mode().Perm()
	if mode&everybodyWrites != 0 || mode&0o020 != 0 && !ourGroup(info) {
		return &Fault{name, fmt.Sprintf("mode %04o lets others put something else into it: use a folder that only its owner may write to, below others like it", mode)}
	}
	return nil
}

func ourGroup(info fs.FileInfo) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return false
	}
	id := int(st.Gid)
	if id == 0 || id == os.Getegid() && os.Geteuid() != 0 {
		return true
	}
	groups, err := os.Getgroups()
	return err == nil && os.Geteuid() != 0 && slices.Contains(groups, id)
}

// OpenFile opens a regular file in a folder, or makes one of this mode when flag has
// O_CREATE. It follows no link, and refuses a file that has another name elsewhere or
// belongs to another user than root, the process's and the accounts. O_TRUNC and O_EXCL
// are not for it: see [Replace].
func OpenFile(folder *os.Root, name string, flag int, perm fs.FileMode, accounts ...int) (*os.File, error) {
	if flag&os.O_CREATE != 0 {
		f, err := folder.OpenFile(name, flag|os.O_EXCL, perm)
		if !errors.Is(err, fs.ErrExist) {
			return f, err
		}
	}
	full := filepath.Join(folder.Name(), name)
	before, err := folder.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !before.Mode().IsRegular() {
		return nil, &Fault{full, "not a regular file"}
	}
	if err := owner(full, before, accounts); err != nil {
		return nil, err
	}
	if st, ok := before.Sys().(*syscall.Stat_t); ok && st.Nlink != 1 {
		return nil, &Fault{full, "it has another name elsewhere"}
	}
	f, err := folder.OpenFile(name, flag&^os.O_CREATE|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	after, err := f.Stat()
	if err == nil && !os.SameFile(before, after) {
		err = &fs.PathError{Op: "open", Path: full, Err: errChanged}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// Replace puts a new file with this text, which only its owner may read, in the place of
// whatever has the name; a link is replaced and not followed. give is called with the file
// before it has its name.
func Replace(folder *os.Root, name string, text []byte, give func(*os.File) error) error {
	beside := name + ".new"
	if err := folder.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := folder.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, give(f), f.Close()); err == nil {
		err = folder.Rename(beside, name)
	}
	if err != nil {
		_ = folder.Remove(beside)
	}
	return err
}
