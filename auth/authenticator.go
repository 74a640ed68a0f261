package auth

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/singleflight"

	"postern/auth/throttle"
	"postern/internal/panics"
)

// Config configures an Authenticator; zero values take the defaults named.
type Config struct {
	Permits  int           // hashes computed concurrently: GOMAXPROCS, at least 2; each takes 19 MiB
	Queue    int           // hashes that may wait for a permit, and as many of known addresses: 64
	Patience time.Duration // how long one waits before ErrBusy: 2 s
	Timeout  time.Duration // of a database lookup: 5 s
	Audit    time.Duration // how long the audit is kept: 365 days
	Log      *slog.Logger  // our own trouble; nil: nowhere
	Guard    *panics.Guard // keeps what panics from ending the process; may be nil
}

const (
	// A change made elsewhere acts within fresh and one lookup's time: 5 s.
	fresh = 4 * time.Second
	// A password verified so long ago is hashed again.
	successTTL = time.Minute
	cacheMax   = 1 << 14 // accounts, and successes, remembered
	// A login that would have to wait longer is refused, see contested.
	maxWait = 5 * time.Second
)

// users is where accounts are read; Store is one.
type users interface {
	account(ctx context.Context, q question) (account, error)
	current(ctx context.Context, userID, credentialID int64) (account, error)
	standing(ctx context.Context, name string, from throttle.Origin) (standing, error)
}

// Authenticator verifies names and passwords.
//
// Applications log in for each message, so a password that was verified within a
// minute costs an HMAC, and one indexed query for each credential every few seconds. It is
// valid for one version of the account: any change voids it. Everything else, a right
// password or a wrong one, a known user or not, costs one lookup and one hash: a slow one,
// or an HMAC if the password has the form of a generated secret.
type Authenticator struct {
	users    users
	store    *Store // nil in tests without a database: nothing is shared or written
	log      *slog.Logger
	guard    *panics.Guard
	timeout  time.Duration
	audit    time.Duration // how long it is kept
	last     time.Duration // what the last round of Run may take
	hashing  *hashing
	throttle *throttle.Throttle
	longest  time.Duration // after which a contested login is answered: maxWait
	notes    *notes
	outdated chan outdatedPassword
	decoy    phc
	macs     atomic.Int64 // secrets compared
	hits     atomic.Int64 // logins that the caches answered
	misses   atomic.Int64 // and those that took the whole way
	noSecret secretHash   // the decoy of secrets

	key       []byte                      // of fingerprints; lives as long as the process
	accounts  *cache[credential, account] // those that succeeded
	successes *cache[fingerprint, struct{}]
	homes     *cache[throttle.Key, stay]     // by Origin.Pair; as of the last login there
	addresses *cache[throttle.Key, struct{}] // that are noted, by Origin.OwnAddress
	standings *cache[throttle.Key, standing] // as read, by the same
	lookups   singleflight.Group             // refreshes, by credential
	hashes    singleflight.Group             // by fingerprint, and whether it is known
}

// credential is the key under which an account is cached.
type credential struct {
	name string
	id   int64
}

// loginTry is one login: name, password and origin.
type loginTry struct {
	credential
	password string // as it is compared
	from     throttle.Origin
	pair     throttle.Key // of from
	address  throttle.Key // the account's own count there
	peer     Peer
	known    bool // to be judged because the account is known there: see contested
}

// newLoginTry reads a client's name and password. If nobody can have them, the result has
// no name: it concerns no user.
func newLoginTry(name, password string, peer Peer) loginTry {
	canonical, err := CanonicalName(name)
	if err != nil || password == "" || len(password) > maxPassword {
		return loginTry{from: throttle.OriginOf(peer.Addr, ""), peer: peer}
	}
	try := loginTry{
		credential: credential{name: canonical}, password: preparePassword(password),
		from: throttle.OriginOf(peer.Addr, canonical), peer: peer,
	}
	try.pair, try.address = try.from.Pair(), try.from.OwnAddress()
	try.id, _, _ = parseSecret(try.password)
	return try
}

func (try loginTry) nobodys() bool { return try.name == "" }

func (try loginTry) secret() bool { return try.id != 0 }

func (try loginTry) question() question { return question{try.name, try.id, try.from.Wide} }

var _ Verifier = (*Authenticator)(nil)

// Defaults is the configuration of an Authenticator that is given nothing.
func Defaults() Config {
	return Config{
		Permits: max(2, runtime.GOMAXPROCS(0)), Queue: 64, Patience: 2 * time.Second, Timeout: 5 * time.Second,
		Audit: 365 * 24 * time.Hour,
	}
}

// NewAuthenticator returns an Authenticator for the users of store, which is on a pool.
func NewAuthenticator(store *Store, cfg Config) *Authenticator {
	a := newAuthenticator(store, store.cost, cfg)
	a.store = store
	return a
}

func newAuthenticator(u users, cost Cost, cfg Config) *Authenticator {
	def := Defaults()
	cfg.Permits, cfg.Queue = cmp.Or(cfg.Permits, def.Permits), cmp.Or(cfg.Queue, def.Queue)
	cfg.Patience, cfg.Timeout = cmp.Or(cfg.Patience, def.Patience), cmp.Or(cfg.Timeout, def.Timeout)
	cfg.Audit = cmp.Or(cfg.Audit, def.Audit)
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	a := &Authenticator{
		users: u, log: cfg.Log, guard: cfg.Guard, timeout: cfg.Timeout, audit: cfg.Audit, last: time.Second,
		hashing:   newHashing(cfg.Permits, cfg.Queue, cfg.Patience),
		throttle:  throttle.New(),
		longest:   maxWait,
		notes:     newNotes(),
		outdated:  make(chan outdatedPassword, rehashQueue),
		decoy:     decoy(cost),
		noSecret:  secretDecoy(),
		key:       make([]byte, 32),
		accounts:  newCache[credential, account](cacheMax, successTTL),
		successes: newCache[fingerprint, struct{}](cacheMax, successTTL),
		homes:     newCache[throttle.Key, stay](networksMax, homeEvery),
		addresses: newCache[throttle.Key, struct{}](networksMax, homeEvery),
		standings: newCache[throttle.Key, standing](networksMax, standingTTL),
	}
	rand.Read(a.key)
	return a
}

// Forget drops what is cached of these users, or of everybody, for Watch. Verified
// passwords stay, but count only against an account's version as read anew.
func (a *Authenticator) Forget(ids []int64, all bool) {
	a.accounts.forget(func(acct account) bool { return all || slices.Contains(ids, acct.id) })
}

// Current returns what a user may do now by a credential, for sessions that outlive a change;
// NewNetwork is not set. The error is ErrCredentials if the credential is no longer valid,
// from peer or at all, or ErrUnavailable.
func (a *Authenticator) Current(ctx context.Context, userID, credentialID int64, peer netip.Addr) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, a.timeout)
	defer cancel()
	acct, err := a.users.current(ctx, userID, credentialID)
	if err != nil {
		return Identity{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if !acct.admits(peer, time.Now()) {
		return Identity{}, ErrCredentials
	}
	return acct.identity(), nil
}

// Verify implements Verifier. It may wait some seconds: for a throttled source, a
// lookup and a permit.
func (a *Authenticator) Verify(ctx context.Context, name, password string, peer Peer) (Identity, error) {
	try := newLoginTry(name, password, peer)
	acct, ok, err := a.remembered(ctx, try)
	switch {
	case ok:
		a.hits.Add(1)
	case err == nil:
		a.misses.Add(1)
		acct, err = a.checked(ctx, try)
	}
	if err != nil {
		return Identity{}, err
	}
	return a.welcome(acct, try, time.Now()), nil
}

// checked is the whole way to an account, the same for every failure: judged
// immediately, as nearly always, or contested.
func (a *Authenticator) checked(ctx context.Context, try loginTry) (account, error) {
	began := time.Now()
	public := a.throttle.Join(try.from.Public(), try.from, began)
	defer func() { a.throttle.Leave(public, time.Now()) }()
	waits := public
	if public.IsGranted() {
		acct, err := a.judged(ctx, try, public.Judges)
		if !errors.Is(err, ErrBusy) {
			return acct, err
		}
		waits = nil
	}
	return a.contested(ctx, try, waits, began.Add(a.longest))
}

// judged compares the password, once. A failure is counted by what judges it.
func (a *Authenticator) judged(ctx context.Context, try loginTry, judges []throttle.Key) (account, error) {
	if try.nobodys() { // costs no lookup and no hash, but waits and counts like others
		a.throttle.Failed(judges, time.Now())
		return account{}, ErrCredentials
	}
	era, asked := a.accounts.eraNow(), time.Now()
	acct, err := a.lookup(ctx, try)
	if err != nil {
		return account{}, err
	}
	print := fingerprintOf(a.key, try.name, acct, try.password)
	matched, err := a.compare(ctx, acct, try, print)
	if err != nil {
		return account{}, err
	}
	now := time.Now()
	if !matched || !acct.admits(try.peer.Addr, now) {
		a.throttle.Failed(judges, now)
		return account{}, ErrCredentials
	}
	if !a.accounts.putOf(era, try.credential, acct, asked) {
		if err := a.unchanged(ctx, acct, try); err != nil {
			return account{}, err
		}
	}
	a.successes.put(print, struct{}{}, now)
	a.throttle.Succeeded(try.from, now)
	a.renew(acct, try)
	return acct, nil
}

// unchanged makes sure that an account is still as it was read, because something changed
// while the password was compared. The client may try again.
func (a *Authenticator) unchanged(ctx context.Context, acct account, try loginTry) error {
	now, err := a.lookup(ctx, try)
	if err == nil && (now.id != acct.id || now.version != acct.version) {
		err = fmt.Errorf("%w: the account has just changed", ErrUnavailable)
	}
	return err
}

// remembered answers from the caches, and is the only way to be let in without a
// hash. A login that it cannot answer takes the whole way, so its time reveals nothing
// except that the right password was given. The first login of a day from a network takes
// the whole way too.
func (a *Authenticator) remembered(ctx context.Context, try loginTry) (acct account, ok bool, err error) {
	now := time.Now()
	acct, at, ok := a.accounts.get(try.credential, now)
	if !ok || !a.verified(acct, try, now) {
		return account{}, false, nil
	}
	if now.Sub(at) >= fresh {
		if acct, err = a.refresh(ctx, try); err != nil {
			return account{}, false, err
		}
		ok = a.verified(acct, try, now)
	}
	_, _, atHome := a.homes.get(try.pair, now)
	if !ok || !atHome || !acct.admits(try.peer.Addr, now) {
		return account{}, false, nil
	}
	return acct, true, nil
}

func (a *Authenticator) verified(acct account, try loginTry, now time.Time) bool {
	_, _, ok := a.successes.get(fingerprintOf(a.key, try.name, acct, try.password), now)
	return ok
}

// refresh reads an account again, once for all concurrent callers.
func (a *Authenticator) refresh(ctx context.Context, try loginTry) (account, error) {
	v, err, _ := a.lookups.Do(fmt.Sprint(try.id, " ", try.name), func() (any, error) {
		era, asked := a.accounts.eraNow(), time.Now()
		acct, err := a.lookup(ctx, try)
		if err == nil {
			a.accounts.putOf(era, try.credential, acct, asked)
		}
		return acct, err
	})
	acct, _ := v.(account)
	return acct, err
}

// lookup reads an account. A client that goes away does not cancel it, which would cost the
// pool a connection; its own deadline ends it.
func (a *Authenticator) lookup(ctx context.Context, try loginTry) (account, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), a.timeout)
	defer cancel()
	acct, err := a.users.account(ctx, try.question())
	if err != nil {
		return account{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return acct, nil
}

// compare hashes a password under a permit. Many sessions that try the same
// password of the same user share one hash. A secret needs neither.
func (a *Authenticator) compare(ctx context.Context, acct account, try loginTry, print fingerprint) (bool, error) {
	h := a.hashOf(acct, try)
	if try.secret() {
		a.macs.Add(1)
		return h.matches(try.password) && acct.hash != "", nil
	}
	// A known account does not share the wait of strangers.
	result := a.hashes.DoChan(fmt.Sprintf("%x %t", print, try.known), func() (any, error) {
		matched := false
		err := a.hashing.do(asker{try.from.Narrow, try.known}, func() { matched = h.matches(try.password) })
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
func (a *Authenticator) hashOf(acct account, try loginTry) hasher {
	var h hasher = a.decoy
	parse := parseHash
	if try.secret() {
		h, parse = a.noSecret, func(s string) (hasher, error) { return parseSecretHash(s) }
	}
	if acct.hash == "" {
		return h
	}
	stored, err := parse(acct.hash)
	if err != nil {
		a.log.Error("credential is not usable", "user", acct.id, "credential", acct.credentialID, "error", err)
		return h
	}
	return stored
}
