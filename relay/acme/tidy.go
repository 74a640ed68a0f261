package acme

import (
	"context"
	"fmt"
	"time"

	"github.com/caddyserver/certmagic"
)

const (
	tidyEvery = 24 * time.Hour
	// keepExpired is how long a certificate stays after its end: one that cannot be
	// renewed for so long will hardly be missed.
	keepExpired = 90 * 24 * time.Hour
)

// tidy removes from the storage, once a day by one of the nodes, what nobody needs
// any more: old OCSP staples, certificates that have long expired, what was known of
// them, and the locks of nodes that died.
func (k *Keeper) tidy(ctx context.Context) {
	now := k.clock.Now()
	if now.Before(k.tidyAt) {
		return
	}
	k.tidyAt = now.Add(tidyEvery)
	ctx, cancel := context.WithTimeout(ctx, passTime)
	defer cancel()
	ctx, end := withScope(ctx)
	defer end(nil)
	err := certmagic.CleanStorage(ctx, k.storage, certmagic.CleanStorageOptions{
		Logger: zapLogger(k.log), InstanceID: k.cfg.Node, Interval: tidyEvery / 2,
		OCSPStaples: true, ExpiredCerts: true, ExpiredCertGracePeriod: keepExpired,
	})
	if err == nil {
		err = k.storage.forget(ctx)
	}
	if err != nil && !stopping(ctx) {
		k.log.Warn("cannot remove old certificates", "error", err)
	}
}

const deleteLocks = `delete from certificate_lock where expires_at < clock_timestamp() - interval '1 day'`

// deleteStates forgets names that nobody orders any more: an order for one that is
// ordered is never a day ago.
const deleteStates = `
delete from certificate_state
where coalesce(not_after, failing_since) < clock_timestamp() - $1::interval
	and coalesce(next_try_at, '-infinity') < clock_timestamp() - interval '1 day'`

func (s *storage) forget(ctx context.Context) error {
	ctx, cancel := call(ctx)
	defer cancel()
	if _, err := s.pool.Exec(ctx, deleteLocks); err != nil {
		return fmt.Errorf("delete old locks: %w", cause(ctx, err))
	}
	if _, err := s.pool.Exec(ctx, deleteStates, keepExpired); err != nil {
		return fmt.Errorf("delete old states: %w", cause(ctx, err))
	}
	return nil
}
