package acme

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5"
)

// errLeaseLost says that a lock was taken over, or may have been: its lease could not
// be renewed in time.
var errLeaseLost = errors.New("the lock of this certificate was lost")

// lease is a lock that this process has.
type lease struct {
	token int64
	stop  context.CancelFunc
	ended chan struct{} // closed when it is no longer renewed
}

// takeLock succeeds when nobody has the lock or its lease is over by the database's
// clock. Each taking has a token of its own.
const takeLock = `
insert into certificate_lock as l (name, holder, token, expires_at)
values ($1, $2, nextval('certificate_lock_token'), clock_timestamp() + $3::interval)
on conflict (name) do update set holder = excluded.holder, token = excluded.token, expires_at = excluded.expires_at
where l.expires_at <= clock_timestamp()
returning token`

const renewLock = `update certificate_lock set expires_at = clock_timestamp() + $3::interval where name = $1 and token = $2`

const giveLock = `delete from certificate_lock where name = $1 and token = $2`

// Lock implements certmagic.Locker. It asks every second: what it waits for takes long.
func (s *storage) Lock(ctx context.Context, name string) error {
	for {
		taken, err := s.TryLock(ctx, name)
		if err != nil || taken {
			return err
		}
		wait := s.pollEvery/2 + rand.N(s.pollEvery)
		select {
		case <-ctx.Done():
			return fmt.Errorf("lock %s: %w", name, context.Cause(ctx))
		case <-time.After(wait):
		}
	}
}

// TryLock implements certmagic.TryLocker.
func (s *storage) TryLock(ctx context.Context, name string) (bool, error) {
	sent := time.Now()
	bounded, cancel := call(ctx)
	defer cancel()
	var token int64
	err := s.pool.QueryRow(bounded, takeLock, name, s.node, s.lease).Scan(&token)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("lock %s: %w", name, cause(bounded, err))
	}
	sc := s.scope(ctx)
	renewing, stop := context.WithCancel(context.WithoutCancel(ctx))
	l := &lease{token: token, stop: stop, ended: make(chan struct{})}
	sc.mu.Lock()
	sc.leases[name] = l
	sc.mu.Unlock()
	go s.keep(renewing, sc, name, l, sent)
	return true, nil
}

// scope is where ctx's locks are kept.
func (s *storage) scope(ctx context.Context) *scope {
	if sc := scopeOf(ctx); sc != nil {
		return sc
	}
	return s.loose
}

// keep renews a lease until it is given back or lost. sent is when the last success was asked for.
func (s *storage) keep(ctx context.Context, sc *scope, name string, l *lease, sent time.Time) {
	defer close(l.ended)
	tick := time.NewTicker(s.renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		err := s.guard.Try("certificate: a lease", func() error { return s.renew(ctx, name, l.token) })
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			sent = now
		case errors.Is(err, errLeaseLost), time.Since(sent) > s.lease:
			s.log.Warn("certificate lock lost, giving up its work", "lock", name, "error", err)
			sc.lost(errLeaseLost)
			return
		}
	}
}

func (s *storage) renew(ctx context.Context, name string, token int64) error {
	ctx, cancel := call(ctx)
	defer cancel()
	tag, err := s.pool.Exec(ctx, renewLock, name, token, s.lease)
	if err != nil {
		return fmt.Errorf("renew lock %s: %w", name, cause(ctx, err))
	}
	if tag.RowsAffected() == 0 {
		return errLeaseLost
	}
	return nil
}

// RenewLockLease implements certmagic.LockLeaseRenewer. Leases are renewed anyway while the
// lock is held, and stay short whatever is asked for: the lock of a dead holder must not
// keep the others waiting.
func (s *storage) RenewLockLease(ctx context.Context, name string, _ time.Duration) error {
	sc := s.scope(ctx)
	sc.mu.Lock()
	l := sc.leases[name]
	sc.mu.Unlock()
	if l == nil {
		return fmt.Errorf("renew lock %s: %w", name, errLeaseLost)
	}
	return s.renew(ctx, name, l.token)
}

// Unlock implements certmagic.Locker. A lost lock belongs to another, and is left alone.
func (s *storage) Unlock(ctx context.Context, name string) error {
	sc := s.scope(ctx)
	sc.mu.Lock()
	l := sc.leases[name]
	delete(sc.leases, name)
	sc.mu.Unlock()
	if l == nil {
		return fmt.Errorf("unlock %s: not locked here", name)
	}
	l.stop()
	<-l.ended
	ctx, cancel := call(context.WithoutCancel(ctx))
	defer cancel()
	if _, err := s.pool.Exec(ctx, giveLock, name, l.token); err != nil {
		return fmt.Errorf("unlock %s: %w; it ends by itself in %s", name, cause(ctx, err), s.lease)
	}
	return nil
}
