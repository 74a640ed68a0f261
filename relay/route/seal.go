package route

import (
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeySize is the length of a sealing key in octets.
const KeySize = chacha20poly1305.KeySize

// ErrSeal says that a sealed password does not open: another key, another
// upstream or user name, or damage.
var ErrSeal = errors.New("the sealed password does not open with this key")

// Sealer seals upstream passwords with XChaCha20-Poly1305, so that the database
// alone, or a dump of it, gives none of them away. It is safe for concurrent use.
type Sealer struct{ aead cipher.AEAD }

// NewSealer makes a Sealer from a key of KeySize octets.
func NewSealer(key []byte) (*Sealer, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("sealing key: %w", err)
	}
	return &Sealer{aead: aead}, nil
}

// Seal encrypts password for the account username of the upstream name. A random
// nonce of 24 octets goes before the ciphertext.
func (s *Sealer) Seal(name, username, password string) []byte {
	nonce := make([]byte, s.aead.NonceSize(), s.aead.NonceSize()+len(password)+s.aead.Overhead())
	rand.Read(nonce) // never fails: crypto/rand ends the program instead
	return s.aead.Seal(nonce, nonce, []byte(password), sealedFor(name, username))
}

// Open gives the password back. The error is ErrSeal.
func (s *Sealer) Open(name, username string, sealed []byte) (string, error) {
	n := s.aead.NonceSize()
	if len(sealed) < n {
		return "", ErrSeal
	}
	password, err := s.aead.Open(nil, sealed[:n], sealed[n:], sealedFor(name, username))
	if err != nil {
		return "", ErrSeal
	}
	return string(password), nil
}

// sealedFor is the associated data: a sealed password moved to another row of the
// table must not open. Neither part can hold NUL, so the joint is unambiguous.
func sealedFor(name, username string) []byte {
	return []byte("upstream\x00" + name + "\x00" + username)
}

// LoadOrCreateKey reads the sealing key from path, or makes one there, readable
// by its owner alone and on the disk before it is used: a key lost in a crash
// would take every password sealed with it along. A file that others may read is
// refused.
func LoadOrCreateKey(path string) ([]byte, error) {
	key, err := loadKey(path)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if err := createKey(path); err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("create key: %w", err)
	}
	return loadKey(path) // of two processes that make it at once, one's key stands
}

func loadKey(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("key %s: not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return nil, fmt.Errorf("key %s: mode %04o lets others read or change it; chmod 600 it", path, mode)
	}
	key, err := io.ReadAll(io.LimitReader(f, KeySize+1))
	if err != nil {
		return nil, fmt.Errorf("read key: %w", err)
	}
	if len(key) != KeySize {
		return nil, fmt.Errorf("key %s: not a key of %d octets", path, KeySize)
	}
	return key, nil
}

// createKey writes a key beside path and links it there, so that path either has
// a whole key or does not exist. It fails with fs.ErrExist if path exists.
func createKey(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, ".key-*") // mode 0600, O_EXCL
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	key := make([]byte, KeySize)
	rand.Read(key)
	_, err = f.Write(key)
	if err == nil {
		err = f.Sync()
	}
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err != nil {
		return err
	}
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
