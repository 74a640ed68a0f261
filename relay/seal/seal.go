// Package seal protects the secrets in the database: they are sealed with
// XChaCha20-Poly1305 under a key that is in a file of the node and never in the database,
// so that a dump alone reveals nothing.
//
// Every sealed value is bound to its place, a text that its owner chooses: moved
// to another row it does not open. The key is made when it is first needed and is
// the same on all nodes of one database; without it, the sealed secrets are lost.
package seal

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/crypto/chacha20poly1305"

	"postern/internal/owned"
)

// KeySize is the length of a sealing key in octets.
const KeySize = chacha20poly1305.KeySize

// ErrSeal says that a sealed value does not open: another key, another place, or
// damage.
var ErrSeal = errors.New("what is sealed does not open with this key")

// Sealer seals and opens values. It is safe for concurrent use.
type Sealer struct{ aead cipher.AEAD }

// New makes a Sealer from a key of KeySize octets.
func New(key []byte) (*Sealer, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	return &Sealer{aead: aead}, nil
}

// Seal encrypts secret for its place. A random nonce of 24 octets goes before the
// ciphertext.
func (s *Sealer) Seal(place string, secret []byte) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(secret)+s.aead.Overhead())
	rand.Read(nonce) // never fails: crypto/rand ends the program instead
	return s.aead.Seal(nonce, nonce, secret, []byte(place))
}

// Open gives back what was sealed for the place. The error is ErrSeal.
func (s *Sealer) Open(place string, sealed []byte) ([]byte, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return nil, ErrSeal
	}
	secret, err := s.aead.Open(nil, sealed[:n], sealed[n:], []byte(place))
	if err != nil {
		return nil, ErrSeal
	}
	return secret, nil
}

// LoadOrCreateKey reads the sealing key from path, or makes one there, readable
// by its owner alone and on the disk before it is used: a key lost in a crash
// would take all that was sealed with it along. A file that everybody may read or change
// is refused.
func LoadOrCreateKey(path string) ([]byte, error) {
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return loadKey(path) // of two processes that make it concurrently, one's key stands
}

func loadKey(path string) ([]byte, error) {
	key, err := owned.ReadSecret(path, nil)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("key %s: not a key of %d octets", path, KeySize)
	}
	return key, nil
}

// createKey writes a key beside path and links it there, so that path either has
// a whole key or does not exist. It fails with fs.ErrExist if path exists. The folder may
// be another account's than this process's: it is opened once, and no link in it is
// followed.
func createKey(path string) error {
	dir, err := os.OpenRoot(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	beside := ".key-" + rand.Text()
	f, err := dir.OpenFile(beside, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer dir.Remove(beside)
	key := make([]byte, KeySize)
	rand.Read(key)
	_, err = f.Write(key)
	if err == nil {
		err = giveToOwner(f, dir)
	}
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err := dir.Link(beside, filepath.Base(path)); err != nil {
		return err
	}
	return syncDir(dir)
}

// giveToOwner gives a file that root makes to the folder's owner: a command of root's must
// not leave a key that the server, which has an account of its own, cannot read.
func giveToOwner(f *os.File, dir *os.Root) error {
	if os.Geteuid() != 0 {
		return nil
	}
	info, err := dir.Stat(".")
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return nil
	}
	return f.Chown(int(owner.Uid), int(owner.Gid))
}

func syncDir(dir *os.Root) error {
	d, err := dir.Open(".")
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
