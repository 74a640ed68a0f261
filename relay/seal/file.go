package seal

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"postern/internal/owned"
)

// LoadOrCreate reads the ring from path, or makes one of one key there, readable
// by its owner alone and on the disk before it is used: a key lost in a crash
// would take all that was sealed with it along. A file that everybody may read or change
// is refused.
func LoadOrCreate(path string) (*Sealer, error) {
	r, err := load(path)
	if errors.Is(err, fs.ErrNotExist) {
		if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, fmt.Errorf("create key: %w", err)
		}
		r, err = load(path) // of two processes that make it concurrently, one's key stands
	}
	if err != nil {
		return nil, err
	}
	s := &Sealer{path: path}
	s.ring.Store(r)
	return s, nil
}

// Reload reads the file again. One that is damaged, or that lacks the current key, changes nothing.
func (s *Sealer) Reload() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	r, err := load(s.path)
	if err != nil {
		return err
	}
	if r.current = r.index(s.Current()); r.current < 0 {
		return fmt.Errorf("key %s: it lacks key %s, with which this process seals; what was read before is used on", s.path, s.Current())
	}
	s.ring.Store(r)
	return nil
}

// fileMark is the first line of a ring.
const fileMark = "postern sealing keys 1\n"

func load(path string) (*ring, error) {
	text, err := owned.ReadSecret(path, nil)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	r := &ring{}
	lines, many := strings.CutPrefix(string(text), fileMark)
	switch {
	case many:
		for i, line := range strings.Split(strings.TrimSuffix(lines, "\n"), "\n") {
			if err := r.addLine(line); err != nil {
				return nil, fmt.Errorf("key %s: line %d: %w: copy the file from another node or a backup", path, i+2, err)
			}
		}
	case len(text) == KeySize:
		err = r.add(text)
	}
	if err == nil && len(r.keys) == 0 {
		err = fmt.Errorf("key %s: not a key of %d octets, nor a ring of keys", path, KeySize)
	}
	return r, err
}

func (r *ring) addLine(line string) error {
	id, text, _ := strings.Cut(line, " ")
	secret, err := hex.DecodeString(text)
	if err == nil {
		err = r.add(secret)
	}
	if err == nil && r.keys[len(r.keys)-1].id != id {
		err = errors.New("the key and its name do not match")
	}
	return err
}

func (r *ring) text() []byte {
	b := []byte(fileMark)
	for _, k := range r.keys {
		b = fmt.Appendf(b, "%s %x\n", k.id, k.secret)
	}
	return b
}

// Add makes a key and writes it to the file, behind the others. Of several processes one at a
// time may change the file.
func (s *Sealer) Add() (id string, err error) {
	err = s.change(func(r *ring) error {
		secret := make([]byte, KeySize)
		rand.Read(secret)
		err := r.add(secret)
		id = r.keys[len(r.keys)-1].id
		return err
	})
	return id, err
}

// Remove takes a key other than the current one out of the file.
func (s *Sealer) Remove(id string) error {
	return s.change(func(r *ring) error {
		r.keys = slices.DeleteFunc(r.keys, func(k key) bool { return k.id == id && id != s.Current() })
		return nil
	})
}

// change writes a changed ring beside the file, and renames it to that: a crash leaves the one or
// the other. The file keeps its mode and owner. It is read anew: another process may have changed it.
func (s *Sealer) change(edit func(*ring) error) error {
	if err := s.Reload(); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	was := s.ring.Load()
	r := &ring{keys: slices.Clone(was.keys)}
	if err := edit(r); err != nil {
		return err
	}
	r.current = r.index(was.keys[was.current].id)
	if err := replace(s.path, r.text()); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	s.ring.Store(r)
	return nil
}

func replace(path string, text []byte) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	base := filepath.Base(path)
	info, err := dir.Stat(base)
	if err != nil {
		return err
	}
	beside := base + ".new"
	if err := dir.Remove(beside); err != nil && !errors.Is(err, fs.ErrNotExist) { // a killed process's
		return err
	}
	err = writeBeside(dir, beside, text, info)
	if err == nil {
		err = dir.Rename(beside, base)
	}
	if err != nil {
		_ = dir.Remove(beside)
		return err
	}
	return syncDir(dir)
}

// createKey writes a key beside path and links it there, so that path either has
// a whole key or does not exist. It fails with fs.ErrExist if path exists. The folder may
// be another account's than this process's: it is opened once, and no link in it is
// followed. A command of root's must not leave a key that the server, whose the folder is,
// cannot read.
func createKey(path string) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	var owner fs.FileInfo
	if os.Geteuid() == 0 {
		if owner, err = dir.Stat("."); err != nil {
			return err
		}
	}
	beside := ".key-" + rand.Text()
	defer dir.Remove(beside)
	key := make([]byte, KeySize)
	rand.Read(key)
	if err := writeBeside(dir, beside, key, owner); err != nil {
		return err
	}
	if err := dir.Link(beside, filepath.Base(path)); err != nil {
		return err
	}
	return syncDir(dir)
}

// writeBeside makes a file that is on the disk, with the owner of like, and with its mode if
// that is a file. Without like it is the process's.
func writeBeside(dir *os.Root, beside string, text []byte, like fs.FileInfo) error {
	f, err := dir.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err == nil && like != nil {
		if owner, ok := like.Sys().(*syscall.Stat_t); ok {
			err = f.Chown(int(owner.Uid), int(owner.Gid))
		}
	}
	if err == nil && like != nil && like.Mode().IsRegular() {
		err = f.Chmod(like.Mode().Perm())
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
