// Package seal protects the secrets in the database: they are sealed with
// XChaCha20-Poly1305 under a key that is in a file of the node and never in the database,
// so that a dump alone reveals nothing.
//
// Every sealed value is bound to its place, a text that its owner chooses: moved
// to another row it does not open. The first key is made when it is first needed; the file is
// the same on all nodes of one database, and without it the sealed secrets are lost.
//
// The file has a ring of keys of 32 octets, one behind the other. A key's ID is the start of its
// SHA-256. A sealed value is "key:ID:", a nonce of 24 octets and the ciphertext. Values of former
// versions are without "key:ID:"; the keys are tried on them in turn.
//
// A key is one of:
//
//   - new: written behind the current key by [Sealer.Add]. It opens values, so that every node
//     can have it before anything is sealed with it.
//   - current: it seals. Which one that is, [Sealer.Use] says, by what the database holds for
//     all nodes (relay/keyring). Until then a Sealer that comes from a file seals nothing: its
//     first key may be one that is in no other file any more.
//   - old: in front of the current one. It opens what is not yet sealed anew, and goes by
//     [Sealer.Remove].
package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"golang.org/x/crypto/chacha20poly1305"
)

// KeySize is the length of a sealing key in octets.
const KeySize = chacha20poly1305.KeySize

// ErrSeal says that a sealed value does not open: another key, another place, or
// damage.
var ErrSeal = errors.New("what is sealed does not open with this key")

// Sealer seals with the current key of a ring, and opens with each. It is safe for concurrent use,
// while one goroutine at a time calls Use, Reload, Add and Remove.
type Sealer struct {
	path string // of the file
	ring atomic.Pointer[ring]
}

// ring is never changed.
type ring struct {
	keys    []key
	current int
	chosen  bool // current is not only the first: Use has said so
}

type key struct {
	id     string
	secret []byte
	cipher.AEAD
}

// New makes a Sealer from keys of KeySize octets. The first is the current one.
func New(keys ...[]byte) (*Sealer, error) {
	s, r := &Sealer{path: "the key file"}, &ring{chosen: true}
	for _, secret := range keys {
		if err := r.add(secret); err != nil {
			return nil, err
		}
	}
	s.ring.Store(r)
	return s, nil
}

func (r *ring) add(secret []byte) error {
	aead, err := chacha20poly1305.NewX(secret)
	if err != nil {
		return fmt.Errorf("sealing key: %w", err)
	}
	sum := sha256.Sum256(secret)
	k := key{hex.EncodeToString(sum[:idSize/2]), secret, aead}
	if r.index(k.id) >= 0 {
		return fmt.Errorf("sealing key %s is there twice", k.id)
	}
	r.keys = append(r.keys, k)
	return nil
}

func (r *ring) index(id string) int {
	return slices.IndexFunc(r.keys, func(k key) bool { return k.id == id })
}

// Keys are the IDs of the ring, in the order of its file.
func (s *Sealer) Keys() (ids []string) {
	for _, k := range s.ring.Load().keys {
		ids = append(ids, k.id)
	}
	return ids
}

// Current is the ID of the key that seals.
func (s *Sealer) Current() string {
	r := s.ring.Load()
	return r.keys[r.current].id
}

// Use makes a key of the ring the current one. If it is not there the error is ErrSeal, and the
// former one stays.
func (s *Sealer) Use(id string) error {
	r := s.ring.Load()
	i := r.index(id)
	if i < 0 {
		return fmt.Errorf("%w: key %s is in use, which %s does not have: copy the file of a node that has it; if no node has it any more, 'postern key use %s --force'",
			ErrSeal, id, s.path, r.keys[len(r.keys)-1].id)
	}
	s.ring.Store(&ring{r.keys, i, true})
	return nil
}

// A sealed value begins with headMark, the key's ID, and ':'.
const (
	headMark = "key:"
	idSize   = 8
	headSize = len(headMark) + idSize + 1
)

func (k *key) head() []byte { return []byte(headMark + k.id + ":") }

// Head is what all values begin with that are sealed with the current key.
func (s *Sealer) Head() []byte {
	r := s.ring.Load()
	return r.keys[r.current].head()
}

// Seal encrypts secret for its place. It fails until the current key is known.
func (s *Sealer) Seal(place string, secret []byte) ([]byte, error) {
	r := s.ring.Load()
	if !r.chosen {
		return nil, fmt.Errorf("nothing can be sealed: the key that is in use is not in %s; copy the file of a node that has it", s.path)
	}
	k := &r.keys[r.current]
	nonce := make([]byte, k.NonceSize())
	rand.Read(nonce) // never fails: crypto/rand ends the program instead
	return k.AEAD.Seal(append(k.head(), nonce...), nonce, secret, []byte(place)), nil
}

// Open gives back what was sealed for the place. The error is ErrSeal, and names the key if
// that is not in the ring.
func (s *Sealer) Open(place string, sealed []byte) ([]byte, error) {
	secret, _, err := s.open(place, sealed)
	return secret, err
}

// KeyOf is the ID of the key that sealed a value. If the value does not open, it is the ID that
// the value names, "" if it names none, and the error is Open's.
func (s *Sealer) KeyOf(place string, sealed []byte) (id string, err error) {
	_, id, err = s.open(place, sealed)
	return id, err
}

func (s *Sealer) open(place string, sealed []byte) (secret []byte, id string, err error) {
	r := s.ring.Load()
	if len(sealed) >= headSize && bytes.HasPrefix(sealed, []byte(headMark)) {
		id = string(sealed[len(headMark) : headSize-1])
	}
	if i := r.index(id); i >= 0 {
		if secret, err := r.keys[i].open(place, sealed[headSize:]); err == nil {
			return secret, id, nil
		}
	}
	for i := range r.keys { // of a former version, whatever its nonce looks like
		if secret, err := r.keys[i].open(place, sealed); err == nil {
			return secret, r.keys[i].id, nil
		}
	}
	if id != "" && r.index(id) < 0 {
		return nil, id, fmt.Errorf("%w: it was sealed with key %q, which %s does not have", ErrSeal, id, s.path)
	}
	return nil, id, ErrSeal
}

func (k *key) open(place string, box []byte) ([]byte, error) {
	n := k.NonceSize()
	if len(box) < n {
		return nil, ErrSeal
	}
	return k.AEAD.Open(nil, box[:n], box[n:], []byte(place))
}

// Column is a column of sealed values, as its owner describes it to who seals them anew.
type Column struct {
	// Read selects of each value that does not begin with $1 (null: of all) the parts of its place,
	// between which a NUL belongs, and the value.
	Read string
	// Write puts $3 in the place of the value $2 with the parts $1, if that is still there.
	Write string
}
