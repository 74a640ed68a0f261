package auth

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	"postern/auth/audit"
	"postern/internal/pg"
)

const (
	retainEvery = time.Hour
	retainFirst = 5 * time.Second     // within it the first round begins, not on all nodes together
	networkKept = 30 * 24 * time.Hour // after it a network is new again, see writeHomes
)

// retention deletes records whose time is over, see docs/retention.md. Nodes that do so
// concurrently skip the rows that another has locked.
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
	if err := audit.Expire(ctx, r.store.db, r.audit); err != nil {
		return err
	}
	if err := pg.Expire(ctx, r.store.db, expireNetworks, networkKept); err != nil {
		return fmt.Errorf("delete old networks: %w", err)
	}
	return nil
}

// Rows are locked and deleted by their ctid: however many there are, nothing else is read.
const expireNetworks = `
	delete from known_network where ctid = any(array(
		select ctid from known_network where last_at < clock_timestamp() - $1::interval
		order by last_at for update skip locked limit $2))`
