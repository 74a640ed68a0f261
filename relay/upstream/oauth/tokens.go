package oauth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"postern/internal/await"
	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/seal"
)

// CoolDown is how long no node asks an authority that has just given no token, and how old a
// refused token must be for another one to be asked for.
const CoolDown = 30 * time.Second

const (
	leaseTime = askTime + 10*time.Second // one request, and the write of what it gave
	waitTime  = leaseTime + askTime      // for a token, though a node has died while it asked
	storeTime = 2 * time.Minute          // a refresh token that is not stored may be the last
	pollEvery = 200 * time.Millisecond   // while another node asks
	dbPause   = time.Second              // after trouble with the database
)

// ErrNew says that the refused token is so new that another one would fare no better.
var ErrNew = errors.New("the token is new")

// Token is an access token, with which [NewExchange] proves an account.
type Token struct {
	Access string
	Serial int64 // of its row; tokens of one account differ by it
}

// String keeps the token out of logs.
func (t Token) String() string { return fmt.Sprintf("token %d", t.Serial) }

// Config configures Tokens.
type Config struct {
	DB          pg.DB
	Sealer      *seal.Sealer
	Node        string
	Log         *slog.Logger  // nil: none
	Guard       *panics.Guard // keeps what panics from ending the process; may be nil
	Authorities Authorities   // nil: Known
	Roots       *x509.CertPool
}

// Tokens are the tokens of a node. It is safe for concurrent use.
type Tokens struct {
	cfg   Config
	table table
	asker *asker

	running context.Context
	cut     context.CancelFunc
	flights sync.WaitGroup

	mu     sync.Mutex
	closed bool
	kept   map[string]*kept // by upstream
}

// kept is what a node has in memory of an account.
type kept struct {
	account    Account
	credential string

	// Guarded by the mu of Tokens.
	token   Token // the last that was read
	until   time.Time
	renewAt time.Time
	born    time.Time
	refused int64 // the serial of a token that a server did not take
	failure error // of the last flight
	retryAt time.Time
	flying  bool          // the next token is being got
	news    chan struct{} // closed when there is a token, or the flight has ended
}

// New makes Tokens; Close ends their work.
func New(cfg Config) *Tokens {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Authorities == nil {
		cfg.Authorities = Known()
	}
	t := &Tokens{cfg: cfg, table: table{cfg.DB, cfg.Sealer, cfg.Node}, asker: newAsker(cfg.Authorities, cfg.Roots), kept: map[string]*kept{}}
	t.running, t.cut = context.WithCancel(context.Background())
	return t
}

// Close waits until no authority is being asked: its answer may contain the only refresh token.
// When ctx ends, requests are cut off.
func (t *Tokens) Close(ctx context.Context) error {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	defer t.cut()
	if err := await.All(ctx, t.flights.Wait); err != nil {
		t.cut()
		t.flights.Wait() // every step ends with its context
		return fmt.Errorf("tokens of upstreams: %w", err)
	}
	return nil
}

// Token returns the account's token, and gets one if there is none. One that is about to
// expire is renewed meanwhile. The error is a Fault, or trouble with the database.
func (t *Tokens) Token(ctx context.Context, a Account) (Token, error) { return t.get(ctx, a, 0) }

// Renew returns another token than the one that a server refused. The error is also ErrNew.
func (t *Tokens) Renew(ctx context.Context, a Account, refused Token) (Token, error) {
	return t.get(ctx, a, refused.Serial)
}

func (t *Tokens) get(ctx context.Context, a Account, refused int64) (Token, error) {
	ctx, cancel := context.WithTimeout(ctx, waitTime)
	defer cancel()
	for {
		token, news, err := t.look(a, refused)
		if news == nil {
			return token, err
		}
		select {
		case <-news:
		case <-ctx.Done():
			return Token{}, fmt.Errorf("wait for a token: %w", ctx.Err())
		}
	}
}

// look returns a token, why there is none, or what to wait for before the next look.
func (t *Tokens) look(a Account, refused int64) (Token, <-chan struct{}, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := time.Now()
	k := t.keep(a)
	if refused != 0 && refused == k.token.Serial {
		if now.Sub(k.born) < CoolDown {
			return Token{}, nil, ErrNew
		}
		k.refused = refused
	}
	usable := k.usable(now)
	waits := now.Before(k.retryAt) && (usable || k.failure != nil)
	if !k.flying && !t.closed && (!usable || now.After(k.renewAt)) && !waits {
		k.flying = true
		t.flights.Go(func() { t.fly(k) })
	}
	switch {
	case usable:
		return k.token, nil, nil
	case k.flying:
		return Token{}, k.news, nil
	}
	if k.failure == nil {
		return Token{}, nil, errors.New("this node is stopping")
	}
	return Token{}, nil, k.failure
}

// keep finds what is known of the account by its settings as they are now.
func (t *Tokens) keep(a Account) *kept {
	k := t.kept[a.Upstream]
	if k == nil || k.account != a {
		k = &kept{account: a, credential: a.credential(), news: make(chan struct{})}
		t.kept[a.Upstream] = k
	}
	return k
}

func (k *kept) usable(now time.Time) bool {
	return k.token.Serial != 0 && k.token.Serial != k.refused && now.Before(k.until)
}

// tell wakes all waiters. mu is held.
func (k *kept) tell() {
	close(k.news)
	k.news = make(chan struct{})
}

// fly runs renew, and records how it ended.
func (t *Tokens) fly(k *kept) {
	var wait time.Duration
	err := t.cfg.Guard.Try("token of an upstream", func() (err error) {
		wait, err = t.renew(t.running, k)
		return err
	})
	if err != nil {
		wait = max(wait, dbPause)
	}
	t.landed(k, wait, err)
}

// landed records how a flight ended. A token that was refused meanwhile is no failure: the waiters
// begin another flight.
func (t *Tokens) landed(k *kept, wait time.Duration, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	k.failure, k.retryAt = err, time.Now().Add(wait)
	if err == nil && k.token.Serial != k.refused && !k.usable(time.Now()) {
		k.failure, k.retryAt = errors.New("the token expired meanwhile"), time.Now().Add(dbPause)
	}
	k.flying = false
	k.tell()
}

// renew returns when the account's row has a usable token that is not due, or why it does
// not, and how long to wait before the next look.
func (t *Tokens) renew(ctx context.Context, k *kept) (wait time.Duration, err error) {
	for end := time.Now().Add(waitTime); ; {
		r, err := t.table.read(ctx, k.account.Upstream, k.credential)
		if err != nil {
			return dbPause, err
		}
		usable, due := t.adopt(k, r)
		switch {
		case usable && !due:
			return 0, nil
		case r.wait > 0:
			f := remembered(r.error, r.login)
			f.Again = r.wait
			return r.wait, f
		case !r.leased:
			// A token that could not be sealed is not asked for: it may be the last refresh token.
			if _, err := t.table.seal(k.account.Upstream, k.credential, pair{}); err != nil {
				return dbPause, err
			}
			lease, refresh, err := t.table.take(ctx, k.account.Upstream, k.credential, r.serial)
			if err != nil {
				return dbPause, err
			}
			if lease != 0 {
				if again, wait, err := t.ask(ctx, k, r, lease, refresh); !again {
					return wait, err
				}
				continue
			}
		case usable:
			return dbPause, nil
		}
		if time.Now().After(end) {
			return dbPause, fmt.Errorf("node %s did not bring a token", r.holder)
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-time.After(pollEvery):
		}
	}
}

// adopt puts a row into memory. A new token is due at a moment that each node draws from the
// last third of its life, 30 to 20% before its end: that is more than the ten minutes of a
// usual outage, and one node is the first.
func (t *Tokens) adopt(k *kept, r row) (usable, due bool) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	if k.token.Serial != r.serial {
		early := r.life/5 + rand.N(max(r.life, 0)/10+1) // life is negative if it ended before it was stored
		k.token = Token{Access: r.pair.Access, Serial: r.serial}
		k.until, k.born = now.Add(r.left), now.Add(-r.age)
		k.renewAt = k.until.Add(-early)
		k.tell()
	}
	return k.usable(now), !now.Before(k.renewAt)
}

// ask gets a token from the authority and stores it. again says that the row has changed
// under the lease.
func (t *Tokens) ask(ctx context.Context, k *kept, r row, lease int64, refresh string) (again bool, wait time.Duration, err error) {
	log := t.cfg.Log.With("upstream", k.account.Upstream, "grant", k.account.Grant.Kind)
	got, err := t.asker.ask(ctx, &k.account.Grant, refresh)
	if ctx.Err() != nil {
		return false, 0, ctx.Err() // the lease ends by itself
	}
	if err != nil {
		return false, t.failed(ctx, k, r, lease, err), err
	}
	if got.Refresh == "" {
		got.Refresh = refresh
	}
	stored, err := t.store(ctx, k, lease, r.serial, got)
	switch {
	case err != nil:
		log.Error("a new token of an upstream cannot be stored and is not used", "error", err)
		return false, dbPause, err
	case !stored:
		log.Warn("another node, or a login, stored a token while this node asked for one")
		return true, 0, nil
	case r.failing:
		log.Info("the upstream has a token again", "expires_in", got.Life)
	default:
		log.Info("the upstream has a new token", "expires_in", got.Life)
	}
	return true, 0, nil // to be read as all nodes read it
}

// failed tells the other nodes, and the log if the reason is new. It returns how long to wait.
func (t *Tokens) failed(ctx context.Context, k *kept, r row, lease int64, err error) time.Duration {
	f := &Fault{}
	if !errors.As(err, &f) {
		f = &Fault{Text: err.Error()}
	}
	if !r.failing || steady(r.error) != steady(f.Error()) {
		t.cfg.Log.Error("the upstream's authority gives no token", "upstream", k.account.Upstream, "grant", k.account.Grant.Kind,
			"error", f, "login", f.Login, "valid_for", max(r.left, 0))
	}
	if err := t.table.fail(ctx, k.account.Upstream, k.credential, lease, f); err != nil {
		t.cfg.Log.Warn("cannot record for the other nodes that there is no token", "error", err)
	}
	return max(CoolDown, f.after)
}

// steady is a text without the numbers of the request with which Microsoft ends it.
func steady(text string) string {
	text, _, _ = strings.Cut(text, " Trace ID:")
	return text
}

// store tries again while the database does not answer.
func (t *Tokens) store(ctx context.Context, k *kept, lease, was int64, got pair) (stored bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTime)
	defer cancel()
	for expires := time.Now().Add(got.Life); ; {
		got.Life = max(time.Until(expires), 0)
		stored, err = t.table.store(ctx, k.account.Upstream, k.credential, lease, was, got)
		if err == nil || !pg.IsDown(err) {
			return stored, err
		}
		select {
		case <-ctx.Done():
			return false, err
		case <-time.After(dbPause / 2):
		}
	}
}
