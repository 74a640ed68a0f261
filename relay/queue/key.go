package queue

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

var (
	sqlIsKnown   = texts.Bind("is_known", "keys")
	sqlVoidKeys  = texts.Bind("void_keys", "message_id", "keys", "kept")
	sqlPromised  = texts.Bind("promised", "message_id")
	sqlLockKeys  = texts.Bind("lock_keys", "message_id", "keys")
	sqlNotVoided = texts.Bind("not_voided", "message_id")
)

// hashes lists the keys of j.
func (j *submittal) hashes() [][16]byte {
	list := make([][16]byte, len(j.keys))
	for i, k := range j.keys {
		list[i] = k.Key
	}
	return list
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
			if seen[k.Key] {
				j.done <- result{again: true}
				continue next
			}
		}
		for _, k := range j.keys {
			seen[k.Key] = true
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
