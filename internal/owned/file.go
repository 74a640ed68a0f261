package owned

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// Bits of a mode that stand for everybody.
const (
	everybodyReads  fs.FileMode = 0o004
	everybodyWrites fs.FileMode = 0o002
)

// Fault says why a file is not to be trusted.
type Fault struct {
	Path string
	Why  string // and what to do about it
}

// Error implements error.
func (f *Fault) Error() string { return f.Path + ": " + f.Why }

// Read returns what is in a file that we act upon. Its error is a [Fault] when others may
// change the file: everybody by its mode, or its owner, who is neither root nor we, by
// having put it into a folder where everybody may.
func Read(path string) ([]byte, error) { return read(path, everybodyWrites, nil) }

// ReadSecret is Read for a file with a secret in it. One that everybody may read is
// reported to exposed and read all the same, for that is how containers are given their secrets;
// it is refused if exposed is nil.
func ReadSecret(path string, exposed func(error)) ([]byte, error) {
	return read(path, everybodyReads|everybodyWrites, exposed)
}

// maxFile bounds what is read: a key or a configuration is never near it.
const maxFile = 16 << 20

func read(path string, bits fs.FileMode, exposed func(error)) ([]byte, error) {
	// To open a pipe for reading would wait for somebody who writes.
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if err := judge(path, info, bits, exposed); err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if len(text) > maxFile {
		err = fmt.Errorf("%s: larger than %d octets", path, maxFile)
	}
	return text, err
}

// judge refuses an open file that others may change in one of these ways, and tells of
// what leaves its content as it was meant.
func judge(path string, info fs.FileInfo, bits fs.FileMode, exposed func(error)) error {
	if !info.Mode().IsRegular() {
		return &Fault{path, "not a regular file"}
	}
	mode := info.Mode().Perm()
	if can := abilities(mode & bits); can != "" {
		fault := &Fault{path, fmt.Sprintf("mode %04o lets everybody %s it; chmod 600 it, or 640 if the server has it by its group", mode, can)}
		if mode&everybodyWrites != 0 || exposed == nil {
			return fault
		}
		exposed(fault)
	}
	owner := ownerOf(info)
	if owner == 0 || owner == os.Geteuid() {
		return nil
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	folder, err := os.Stat(filepath.Dir(real))
	if err != nil {
		return err
	}
	if folder.Mode().Perm()&everybodyWrites != 0 { // anybody may have put it there
		return &Fault{path, fmt.Sprintf("it belongs to %s, in a folder that everybody may write to", userName(owner))}
	}
	return nil
}

func abilities(bits fs.FileMode) string {
	switch bits {
	case everybodyReads | everybodyWrites:
		return "read and change"
	case everybodyReads:
		return "read"
	case everybodyWrites:
		return "change"
	}
	return ""
}

// Mine reports by a [Fault] that a file belongs to another user: neither root, nor the
// process's own, nor one of those given.
func Mine(path string, also ...int) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	return owner(path, info, also)
}

func owner(path string, info fs.FileInfo, also []int) error {
	id := ownerOf(info)
	if id == 0 || id == os.Geteuid() {
		return nil
	}
	for _, account := range also {
		if id == account {
			return nil
		}
	}
	return &Fault{path, fmt.Sprintf("it belongs to %s and not to %s", userName(id), userName(os.Geteuid()))}
}

// ownerOf is the number of a file's user; -1, nobody's, where the system has none.
func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}

func userName(id int) string {
	number := strconv.Itoa(id)
	u, err := user.LookupId(number)
	if err != nil {
		return "user " + number
	}
	return "user " + u.Username
}

// IsFault reports that an error says whose a file is, or who may use it.
func IsFault(err error) bool {
	var fault *Fault
	return errors.As(err, &fault)
}
