package seal

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
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

// Reload reads the file again. One that is damaged, or that lacks the key that this process seals
// with, changes nothing.
func (s *Sealer) Reload() error {
	r, err := load(s.path)
	if err != nil {
		return err
	}
	if !s.ring.Load().chosen { // it has sealed nothing
		s.ring.Store(r)
		return nil
	}
	r.chosen = true
	if r.current = r.index(s.Current()); r.current < 0 {
		return fmt.Errorf("key %s: it lacks key %s, with which this process seals; what was read before is used on", s.path, s.Current())
	}
	s.ring.Store(r)
	return nil
}

// mostKeys bounds a ring.
const mostKeys = 64

func load(path string) (*ring, error) {
	text, err := owned.ReadSecret(path, nil)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if n := len(text); n == 0 || n%KeySize != 0 || n > mostKeys*KeySize {
		return nil, fmt.Errorf("key %s: not a key of %d octets, nor up to %d such keys", path, KeySize, mostKeys)
	}
	r := &ring{}
	for secret := range slices.Chunk(text, KeySize) {
		if err := r.add(secret); err != nil {
			return nil, fmt.Errorf("key %s: %w", path, err)
		}
	}
	return r, nil
}

// Add makes a key and writes it to the file, behind the others, unless before, which is told its
// ID, fails. Of several processes one at a time may change the file.
func (s *Sealer) Add(before func(id string) error) (id string, err error) {
	if err := s.Reload(); err != nil { // another process may have changed it
		return "", err
	}
	r := &ring{keys: slices.Clone(s.ring.Load().keys)}
	if len(r.keys) == mostKeys {
		return "", fmt.Errorf("key %s: it has %d keys, and no more fit: remove old ones with 'postern key remove'", s.path, mostKeys)
	}
	secret := make([]byte, KeySize)
	rand.Read(secret)
	if err := r.add(secret); err != nil {
		return "", err
	}
	id = r.keys[len(r.keys)-1].id
	if err := before(id); err != nil {
		return "", err
	}
	return id, s.replace(r.keys)
}

// Remove takes a key other than the current one out of the file, under the same condition.
func (s *Sealer) Remove(id string) error {
	if err := s.Reload(); err != nil {
		return err
	}
	r := s.ring.Load()
	i := r.index(id)
	if i < 0 || i == r.current {
		return fmt.Errorf("key %s: it has no key %q that could be removed: its current key is %s", s.path, id, s.Current())
	}
	return s.replace(slices.Delete(slices.Clone(r.keys), i, i+1))
}

// replace writes keys beside the file and renames that: a crash leaves the one or the other. The
// file keeps its mode and owner; a link is followed.
func (s *Sealer) replace(keys []key) error {
	var text []byte
	for _, k := range keys {
		text = append(text, k.secret...)
	}
	if err := replace(s.path, text); err != nil {
		return fmt.Errorf("write key: %w", err)
	}
	return s.Reload()
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
