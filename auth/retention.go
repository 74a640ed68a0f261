package auth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	retainEvery = time.Hour
	retainFirst = 5 * time.Second // within it the first round begins, not on all nodes together
	retainBatch = 1000
	retainPause = 100 * time.Millisecond // between two batches
	networkKept = 30 * 24 * time.Hour    // after it a network is new again, see writeHomes
)

// retention deletes what is kept for a time only, see docs/retention.md. Nodes that do
// so concurrently skip the rows that another has locked.
type retention struct {
	store   *Store
	audit   time.Duration
	trouble trouble
}

func (r *retention) run(ctx context.Context) {
	first := time.NewTimer(rand.N(retainFirst))
	defer first.Stop()
	select {
	case <-ctx.Done():
		return
	case <-first.C:
	}
	r.trouble.heard(r.round(ctx))
	every(ctx, retainEvery, func() { r.trouble.heard(r.round(ctx)) })
}

func (r *retention) round(ctx context.Context) error {
	if err := r.store.expire(ctx, expireAudit, r.audit); err != nil {
		return fmt.Errorf("delete old audit: %w", err)
	}
	if err := r.store.expire(ctx, expireNetworks, networkKept); err != nil {
		return fmt.Errorf("delete old networks: %w", err)
	}
	return nil
}

// Rows are locked and deleted by their place: however many there are, nothing else is
// read.
const (
	expireAudit = `
		delete from audit where ctid = any(array(
			select ctid from audit where at < clock_timestamp() - $1::interval order by at for update skip locked limit $2))`
	expireNetworks = `
		delete from known_network where ctid = any(array(
			select ctid from known_network where last_at < clock_timestamp() - $1::interval
			order by last_at for update skip locked limit $2))`
)

// expire deletes what is older than a time, in batches.
func (s *Store) expire(ctx context.Context, sql string, keep time.Duration) error {
	for {
		var n int64
		err := s.relaxed(ctx, func(ctx context.Context, tx pgx.Tx) error {
			tag, err := tx.Exec(ctx, sql, keep, retainBatch)
			n = tag.RowsAffected()
			return err
		})
		if err != nil || n < retainBatch {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(retainPause):
		}
	}
}
