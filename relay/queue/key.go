package queue

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/relay/smtp"
)

var (
	sqlIsKnown   = texts.Bind("is_known", "keys")
	sqlVoidKeys  = texts.Bind("void_keys", "message_id", "keys", "kept")
	sqlPromised  = texts.Bind("promised", "message_id")
	sqlLockKeys  = texts.Bind("lock_keys", "message_id", "keys")
	sqlNotVoided = texts.Bind("not_voided", "message_id")
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

// rcptKey is a key of table duplicate.
type rcptKey struct {
	key [16]byte
	n   int // of the recipient; ofClient for the client's own key
}

const ofClient = -1

// each makes the keys of a message for its recipients, each once.
func (k Key) each(rcpts []Recipient) []rcptKey {
	if k == (Key{}) {
		return nil
	}
	keys := make([]rcptKey, 0, len(rcpts)+1)
	if k.Content != [16]byte{} {
		keys = append(keys, rcptKey{k.Of, ofClient})
	}
	b := make([]byte, 0, 384)
	for i := range rcpts {
		a := &rcpts[i].Address
		b = append(append(append(append(b[:0], k.Of[:]...), a.Local...), '@'), a.DomainKey()...)
		sum := sha256.Sum256(b)
		keys = append(keys, rcptKey{[16]byte(sum[:]), rcpts[i].N})
	}
	return keys
}

// hashes lists the keys of j.
func (j *submittal) hashes() [][16]byte {
	list := make([][16]byte, len(j.keys))
	for i, k := range j.keys {
		list[i] = k.key
	}
	return list
}

// OtherContent refuses a message that has a client's own key of other content.
type OtherContent struct{ First ID } // the message that has the key

func (e *OtherContent) Error() string {
	return "the idempotency key was used for other content, queued as " + e.First.String()
}

// copy notes a recipient that is a duplicate.
func (r *result) copy(n int, first ID) {
	if n == ofClient {
		r.err = &OtherContent{First: first}
		return
	}
	if r.copies == nil || first.String() < r.first.String() {
		r.first = first
	}
	r.copies = append(r.copies, n)
}

// without returns the recipients of j that are not in ns, which are not many.
func (j *submittal) without(ns []int) []Recipient {
	if len(ns) == 0 {
		return j.rcpts
	}
	left := make([]Recipient, 0, len(j.rcpts))
	for i := range j.rcpts {
		if !slices.Contains(ns, j.rcpts[i].N) {
			left = append(left, j.rcpts[i])
		}
	}
	return left
}

// distinct puts off the messages of which the group has a copy: whether they are duplicates is
// known when that is stored.
func (c *committer) distinct(mail []*submittal) []*submittal {
	seen := make(map[[16]byte]bool, len(mail))
	mine := mail[:0]
next:
	for _, j := range mail {
		for _, k := range j.keys {
			if seen[k.key] {
				j.done <- result{again: true}
				continue next
			}
		}
		for _, k := range j.keys {
			seen[k.key] = true
		}
		mine = append(mine, j)
	}
	return mine
}

// isKnown says whether a copy of j may be stored, without waiting for anybody.
func isKnown(ctx context.Context, conn *pgx.Conn, j *submittal) (known bool, err error) {
	if len(j.keys) == 0 {
		return false, nil
	}
	if err := conn.QueryRow(ctx, sqlIsKnown, j.hashes()).Scan(&known); err != nil {
		return false, fmt.Errorf("look for duplicates: %w", err)
	}
	return known, nil
}

// unkey takes back the keys of j, which is being voided, but of recipients for which a duplicate was
// accepted meanwhile: they are kept.
func unkey(ctx context.Context, tx pgx.Tx, j *submittal) (kept []int32, err error) {
	if len(j.keys) == 0 {
		return []int32{}, nil
	}
	keys := j.hashes()
	if _, err := tx.Exec(ctx, sqlLockKeys, j.m.ID, keys); err != nil {
		return nil, fmt.Errorf("lock keys: %w", err)
	}
	if err := tx.QueryRow(ctx, sqlPromised, j.m.ID).Scan(&kept); err != nil {
		return nil, fmt.Errorf("read duplicates: %w", err)
	}
	if _, err := tx.Exec(ctx, sqlVoidKeys, j.m.ID, keys, kept); err != nil {
		return nil, fmt.Errorf("void keys: %w", err)
	}
	if len(kept) > 0 {
		if _, err := tx.Exec(ctx, sqlNotVoided, j.m.ID); err != nil {
			return nil, fmt.Errorf("keep message: %w", err)
		}
	}
	return kept, nil
}
