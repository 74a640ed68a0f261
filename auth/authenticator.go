package auth

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sync/singleflight"
)

// Config configures an Authenticator; zero values take the defaults named.
type Config struct {
	Permits  int           // hashes computed at once: GOMAXPROCS; each takes 19 MiB
	Queue    int           // hashes that may wait for a permit: 64
	Patience time.Duration // how long one waits before ErrBusy: 2 s
	Timeout  time.Duration // of a database lookup: 5 s
	Log      *slog.Logger  // troubles of ours; nil: nowhere
}

const (
	// A change made elsewhere acts within fresh and one lookup's time: 5 s.
	fresh = 4 * time.Second
	// A password verified so long ago is hashed again.
	successTTL = time.Minute
	cacheMax   = 1 << 14 // accounts, and successes, remembered
)

// users is where accounts are read; Store is one.
type users interface {
	account(ctx context.Context, name string) (account, error)
}

// Authenticator verifies names and passwords.
//
// Applications log in for each message, so a password that was verified within a
// minute costs an HMAC, and one indexed query for each user every few seconds. It
// holds against the account's version only: any change voids it. Everything
// else, a right password or a wrong one, a known user or not, costs one lookup and
// one hash.
type Authenticator struct {
	users    users
	log      *slog.Logger
	timeout  time.Duration
	gate     *gate
	throttle *throttle
	decoy    phc

	key       []byte                  // of fingerprints; lives as long as the process
	accounts  *cache[string, account] // those that succeeded, by canonical name
	successes *cache[fingerprint, struct{}]
	lookups   singleflight.Group // refreshes, by canonical name
	hashes    singleflight.Group // by fingerprint
}

var _ Verifier = (*Authenticator)(nil)

// NewAuthenticator returns an Authenticator for the users of store.
func NewAuthenticator(store *Store, cfg Config) *Authenticator {
	return newAuthenticator(store, store.cost, cfg)
}

func newAuthenticator(u users, cost Cost, cfg Config) *Authenticator {
	if cfg.Permits <= 0 {
		cfg.Permits = runtime.GOMAXPROCS(0)
	}
	if cfg.Queue <= 0 {
		cfg.Queue = 64
	}
	if cfg.Patience <= 0 {
		cfg.Patience = 2 * time.Second
	}
	if cfg.Timeout <= 0 {
		cfg.Timeout = 5 * time.Second
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Authenticator{
		users: u, log: cfg.Log, timeout: cfg.Timeout,
		gate:      newGate(cfg.Permits, cfg.Queue, cfg.Patience),
		throttle:  newThrottle(),
		decoy:     decoy(cost),
		key:       make([]byte, 32),
		accounts:  newCache[string, account](cacheMax, successTTL),
		successes: newCache[fingerprint, struct{}](cacheMax, successTTL),
	}
	rand.Read(a.key)
	return a
}

// Invalidate forgets what is cached of accounts, for a listener on Channel. Verified
// passwords stay, but count only against an account's version as read anew.
func (a *Authenticator) Invalidate() { a.accounts.clear() }

// Verify implements Verifier. It may wait some seconds: for a throttled source, a
// lookup and a permit.
func (a *Authenticator) Verify(ctx context.Context, name, password string, peer netip.Addr) (Identity, error) {
	network := networkOf(peer)
	canonical, err := CanonicalName(name)
	if err != nil || password == "" || len(password) > maxPassword {
		// Says nothing about any user, so it costs no hash; but it is a failure.
		a.throttle.failed(network, canonical, time.Now())
		return Identity{}, ErrCredentials
	}
	password = preparePassword(password)
	if id, ok, err := a.remembered(ctx, canonical, password, peer); ok || err != nil {
		return id, err
	}
	if err := a.wait(ctx, network, canonical); err != nil {
		return Identity{}, err
	}
	asked := time.Now()
	acct, err := a.lookup(ctx, canonical)
	if err != nil {
		return Identity{}, err
	}
	print := fingerprintOf(a.key, canonical, acct, password)
	matched, err := a.compare(ctx, acct, password, print)
	if err != nil {
		return Identity{}, err
	}
	now := time.Now()
	if !matched || !acct.admits(peer, now) {
		a.throttle.failed(network, canonical, now)
		return Identity{}, ErrCredentials
	}
	a.accounts.put(canonical, acct, asked)
	a.successes.put(print, struct{}{}, now)
	a.throttle.succeeded(network, canonical, now)
	return acct.identity(), nil
}

// remembered answers from the caches, and is the only way to be let in without a
// hash. What it cannot answer takes the whole way, so that nothing can be told
// from its time but that the right password was given.
func (a *Authenticator) remembered(ctx context.Context, name, password string, peer netip.Addr) (id Identity, ok bool, err error) {
	now := time.Now()
	acct, at, ok := a.accounts.get(name, now)
	if !ok || !a.verified(name, acct, password, now) {
		return Identity{}, false, nil
	}
	if now.Sub(at) >= fresh {
		if acct, err = a.refresh(ctx, name); err != nil {
			return Identity{}, false, err
		}
		ok = a.verified(name, acct, password, now)
	}
	if !ok || !acct.admits(peer, now) {
		return Identity{}, false, nil
	}
	return acct.identity(), true, nil
}

func (a *Authenticator) verified(name string, acct account, password string, now time.Time) bool {
	_, _, ok := a.successes.get(fingerprintOf(a.key, name, acct, password), now)
	return ok
}

// refresh reads an account again, once for all who ask at the same time.
func (a *Authenticator) refresh(ctx context.Context, name string) (account, error) {
	v, err, _ := a.lookups.Do(name, func() (any, error) {
		asked := time.Now()
		acct, err := a.lookup(ctx, name)
		if err == nil {
			a.accounts.put(name, acct, asked)
		}
		return acct, err
	})
	acct, _ := v.(account)
	return acct, err
}

// wait holds back an attempt whose source has failed too often. Nothing is held
// meanwhile.
func (a *Authenticator) wait(ctx context.Context, network netip.Prefix, name string) error {
	d, ok := a.throttle.reserve(network, name, time.Now())
	if !ok {
		return fmt.Errorf("%w: too many failures", ErrBusy)
	}
	if d <= 0 {
		return nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// lookup reads an account. A client that goes away does not cancel it, for that
// would cost the pool a connection; its own deadline ends it.
func (a *Authenticator) lookup(ctx context.Context, name string) (account, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
	defer cancel()
	acct, err := a.users.account(ctx, name)
	if err != nil {
		return account{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return acct, nil
}

// compare hashes a password under a permit. Many sessions that try the same
// password of the same user share one hash.
func (a *Authenticator) compare(ctx context.Context, acct account, password string, print fingerprint) (bool, error) {
	h := a.hashOf(acct)
	result := a.hashes.DoChan(string(print[:]), func() (any, error) {
		matched := false
		err := a.gate.do(func() { matched = h.matches(password) })
		return matched, err
	})
	select {
	case r := <-result:
		matched, _ := r.Val.(bool)
		return matched && acct.hash != "", r.Err
	case <-ctx.Done():
		return false, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
}

// hashOf returns the account's hash or, when there is none that can be used, the
// decoy: equal work for every failure.
func (a *Authenticator) hashOf(acct account) hasher {
	if acct.hash == "" {
		return a.decoy
	}
	h, err := parseHash(acct.hash)
	if err != nil {
		a.log.Error("credential is not usable", "user", acct.id, "credential", acct.credentialID, "error", err)
		return a.decoy
	}
	return h
}
