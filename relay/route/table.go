package route

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/relay/smtp"
)

// Table is the routing table of one node: a snapshot of rules and upstreams in
// memory, read again when it is asked and older than its age. It implements
// Resolver and is safe for concurrent use.
//
// While the database does not answer, the last snapshot stays in use.
type Table struct {
	load func(context.Context) (*snapshot, error)
	age  time.Duration
	now  func() time.Time

	current atomic.Pointer[snapshot]
	loading sync.Mutex // held by the one caller that reads
	next    time.Time  // guarded by loading: no read before
	failed  error      // guarded by loading: the last read's
}

// loadTimeout bounds one reading of the rules.
const loadTimeout = 3 * time.Second

// TableAge is how soon a node uses a changed route.
const TableAge = 2 * time.Second

// NewTable makes a Table that notices a change within age (0: TableAge).
func NewTable(store *Store, age time.Duration) *Table {
	if age <= 0 {
		age = TableAge
	}
	return &Table{load: store.snapshot, age: age, now: time.Now}
}

// Resolve returns the decision of the first rule that matches, ErrNoRoute when
// none does, or why no table could be read.
func (t *Table) Resolve(ctx context.Context, userID int64, sender, recipient smtp.Address) (Decision, error) {
	s, err := t.fresh(ctx)
	if err != nil {
		return Decision{}, err
	}
	d, err := s.resolve(userID, sender, recipient)
	if !errors.Is(err, ErrNoRoute) || t.now().Before(s.until) {
		return d, err
	}
	// Mail without a route waits a minute, so an old snapshot must not be the reason.
	t.loading.Lock()
	s, err = t.refresh(ctx)
	t.loading.Unlock()
	if err != nil {
		return Decision{}, err
	}
	return s.resolve(userID, sender, recipient)
}

// fresh returns the snapshot, which one caller reads again when it is old; the
// others meanwhile go on with what is there.
func (t *Table) fresh(ctx context.Context) (*snapshot, error) {
	s := t.current.Load()
	if s != nil {
		if t.now().Before(s.until) || !t.loading.TryLock() {
			return s, nil
		}
	} else {
		t.loading.Lock()
	}
	defer t.loading.Unlock()
	return t.refresh(ctx)
}

// refresh runs with loading held.
func (t *Table) refresh(ctx context.Context) (*snapshot, error) {
	s := t.current.Load()
	if now := t.now(); now.Before(t.next) { // another caller has just read, or just failed
		if s == nil {
			return nil, t.failed
		}
		return s, nil
	}
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	read, err := t.load(ctx)
	t.next = t.now().Add(t.age)
	t.failed = err
	if err != nil {
		if s == nil {
			return nil, err
		}
		return s, nil
	}
	read.until = t.next
	t.current.Store(read)
	return read, nil
}

// snapshot is the rules in order with their upstreams opened.
type snapshot struct {
	rules     []Rule
	upstreams map[string]*entry
	until     time.Time
}

// entry is an upstream, or why it cannot be used.
type entry struct {
	upstream Upstream
	err      error
}

func (s *snapshot) resolve(userID int64, sender, recipient smtp.Address) (Decision, error) {
	for i := range s.rules {
		rule := &s.rules[i]
		if !rule.matches(userID, sender, recipient) {
			continue
		}
		if rule.MX() {
			return Decision{Route: rule.ID}, nil
		}
		// The later upstreams of the list are for failover, which is not there yet.
		e := s.upstreams[rule.Upstreams[0]]
		if e == nil {
			return Decision{}, fmt.Errorf("route %d: upstream %q is gone", rule.ID, rule.Upstreams[0])
		}
		if e.err != nil {
			return Decision{}, e.err
		}
		return Decision{Route: rule.ID, Upstream: &e.upstream}, nil
	}
	return Decision{}, ErrNoRoute
}

func (r *Rule) matches(userID int64, sender, recipient smtp.Address) bool {
	return (r.UserID == 0 || r.UserID == userID) &&
		(r.SenderDomain == "" || r.SenderDomain == sender.DomainKey()) &&
		(r.RecipientDomain == "" || r.RecipientDomain == recipient.DomainKey())
}

const loadUpstreams = `
select name, host, port, tls, username, password, ca, max_connections from upstream`

// snapshot reads the whole table in one transaction, so that no rule names an
// upstream that was added after the upstreams were read.
func (s *Store) snapshot(ctx context.Context) (*snapshot, error) {
	snap := &snapshot{upstreams: map[string]*entry{}}
	batch := &pgx.Batch{}
	batch.Queue(listRoutes).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var r Rule
			if err := rows.Scan(&r.ID, &r.Position, &r.UserID, &r.SenderDomain, &r.RecipientDomain,
				&r.CreatedAt, &r.Upstreams); err != nil {
				return err
			}
			snap.rules = append(snap.rules, r)
		}
		return rows.Err()
	})
	batch.Queue(loadUpstreams).Query(func(rows pgx.Rows) error {
		for rows.Next() {
			var u Upstream
			var sealed []byte
			if err := rows.Scan(&u.Name, &u.Host, &u.Port, &u.TLS, &u.Username, &sealed, &u.CA,
				&u.MaxConnections); err != nil {
				return err
			}
			snap.upstreams[u.Name] = s.open(u, sealed)
		}
		return rows.Err()
	})
	err := pgx.BeginTxFunc(ctx, s.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly},
		func(tx pgx.Tx) error { return tx.SendBatch(ctx, batch).Close() })
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	return snap, nil
}

// open unseals the password. One that does not open spoils its own upstream only.
func (s *Store) open(u Upstream, sealed []byte) *entry {
	if sealed == nil {
		return &entry{upstream: u}
	}
	if s.sealer == nil {
		return &entry{err: fmt.Errorf("upstream %q: %w", u.Name, ErrNoKey)}
	}
	password, err := s.sealer.Open(passwordOf(u.Name, u.Username), sealed)
	if err != nil {
		return &entry{err: fmt.Errorf("upstream %q: %w", u.Name, err)}
	}
	u.Password = string(password)
	return &entry{upstream: u}
}

// passwordOf is the place for which a password is sealed: moved to another row of the
// table it must not open. Neither part can hold NUL, so the joint is unambiguous.
func passwordOf(name, username string) string {
	return "upstream\x00" + name + "\x00" + username
}
