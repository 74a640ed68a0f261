package insert

import (
	"crypto/sha256"
	"encoding/binary"
	"time"

	"github.com/google/uuid"

	"postern/relay/smtp"
)

// Key tells the copies of one message from other mail: docs/duplicates.md. The zero Key says
// that each message is different.
type Key struct {
	Of      [16]byte
	Content [16]byte      // what a client's own key stands for; zero: Of is of the content itself
	Window  time.Duration // in which a copy is a duplicate, in whole seconds
}

// ContentKey is that of a message by what it is: its user, its sender, its Message-ID and a hash of
// its octets. Recipients are compared one by one.
func ContentKey(user int64, sender smtp.Address, messageID string, octets []byte, window time.Duration) Key {
	return Key{Of: keyHash("content", user, messageID, sender.String(), string(octets)), Window: window}
}

// ClientKey is that of a message by a key that the client has given it, and what the key stands for:
// the sender and the hash of the octets.
func ClientKey(user int64, key string, sender smtp.Address, octets []byte, window time.Duration) Key {
	return Key{Of: keyHash("client", user, key), Content: keyHash("stands for", user, sender.String(), string(octets)), Window: window}
}

// keyHash hashes parts so that no two lists of them are alike.
func keyHash(kind string, user int64, parts ...string) [16]byte {
	b := make([]byte, 0, 512)
	b = append(b, kind...)
	b = binary.BigEndian.AppendUint64(b, uint64(user))
	for _, p := range parts {
		b = binary.BigEndian.AppendUint32(b, uint32(len(p)))
		b = append(b, p...)
	}
	sum := sha256.Sum256(b)
	return [16]byte(sum[:])
}

// RcptKey is a key of table duplicate.
type RcptKey struct {
	Key [16]byte
	N   int // of the recipient; ofClient for the client's own key
}

const ofClient = -1

// Each makes the keys of a message for its recipients, each once.
func (k Key) Each(rcpts []Recipient) []RcptKey {
	if k == (Key{}) {
		return nil
	}
	keys := make([]RcptKey, 0, len(rcpts)+1)
	if k.Content != [16]byte{} {
		keys = append(keys, RcptKey{k.Of, ofClient})
	}
	b := make([]byte, 0, 384)
	for i := range rcpts {
		a := &rcpts[i].Address
		b = append(append(append(append(b[:0], k.Of[:]...), a.Local...), '@'), a.DomainKey()...)
		sum := sha256.Sum256(b)
		keys = append(keys, RcptKey{[16]byte(sum[:]), rcpts[i].N})
	}
	return keys
}

// OtherContent refuses a message that has a client's own key of other content.
type OtherContent struct{ First uuid.UUID } // the message that has the key

func (e *OtherContent) Error() string {
	return "the idempotency key was used for other content, queued as " + e.First.String()
}

// copy notes a recipient that is a duplicate.
func (r *Result) copy(n int, first uuid.UUID) {
	if n == ofClient {
		r.Err = &OtherContent{First: first}
		return
	}
	if r.Copies == nil || first.String() < r.First.String() {
		r.First = first
	}
	r.Copies = append(r.Copies, n)
}
