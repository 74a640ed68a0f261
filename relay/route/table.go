package route

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/relay/smtp"
	"postern/relay/upstream"
)

// Table is the routing table of one node: a snapshot of rules and accounts in
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

const (
	// TableAge is how old a node's table gets before it is read again. A changed route is used
	// when that reading ends.
	TableAge = 2 * time.Second
	// LoadTimeout bounds one reading, during which the table that is there is used.
	LoadTimeout = 3 * time.Second
)

// NewTable makes a Table that notices a change within age (0: TableAge).
func NewTable(rules *Store, accounts *upstream.Store, age time.Duration) *Table {
	if age <= 0 {
		age = TableAge
	}
	load := func(ctx context.Context) (*snapshot, error) { return rules.read(ctx, accounts) }
	return &Table{load: load, age: age, now: time.Now}
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

// Named returns a way by its name. One that is not there has an error in it.
func (t *Table) Named(ctx context.Context, name string) (Way, error) {
	s, err := t.fresh(ctx)
	if err != nil {
		return Way{}, err
	}
	return wayOf(name, s.accounts), nil
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
	ctx, cancel := context.WithTimeout(ctx, LoadTimeout)
	defer cancel()
	began := t.now()
	read, err := t.load(ctx)
	// The reading may lack changes made since it began. But a database that is slow, or does not
	// answer, must not have all who ask wait for a reading of their own.
	t.next = began.Add(t.age)
	if soonest := t.now().Add(t.age / 2); soonest.After(t.next) {
		t.next = soonest
	}
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

// snapshot is the rules in order, each with its ways.
type snapshot struct {
	rules []Rule
	ways  [][]Way // of each rule
	until time.Time

	accounts map[string]*upstream.Loaded
}

func (s *snapshot) resolve(userID int64, sender, recipient smtp.Address) (Decision, error) {
	for i := range s.rules {
		if rule := &s.rules[i]; rule.Mismatch(userID, sender, recipient) == "" {
			return Decision{rule.ID, permitted(s.ways[i], sender)}, nil
		}
	}
	return Decision{}, ErrNoRoute
}

// ways are those of a rule.
func (r *Rule) ways(accounts map[string]*upstream.Loaded) []Way {
	list := make([]Way, len(r.Via))
	for i, name := range r.Via {
		list[i] = wayOf(name, accounts)
	}
	return list
}

func wayOf(name string, accounts map[string]*upstream.Loaded) Way {
	up := accounts[name]
	switch {
	case name == MX:
		return Way{Name: MX}
	case up == nil:
		return Way{Name: name, Err: fmt.Errorf("upstream %q is gone", name)}
	}
	return Way{name, &up.Account, up.Err}
}

// permitted are ways, with the error in those that may not send as this sender. They are copied
// then, for they are shared.
func permitted(ways []Way, sender smtp.Address) []Way {
	copied := false
	for i := range ways {
		up := ways[i].Upstream
		if up == nil || up.MaySend(sender) {
			continue
		}
		if !copied {
			ways, copied = slices.Clone(ways), true
		}
		ways[i].Err = &upstream.SenderError{Upstream: up.Name, Sender: sender}
	}
	return ways
}

// read reads both tables in one transaction, so that no rule names an account that was added
// after the accounts were read.
func (s *Store) read(ctx context.Context, accounts *upstream.Store) (*snapshot, error) {
	snap := &snapshot{}
	options := pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}
	err := pgx.BeginTxFunc(ctx, s.pool, options, func(tx pgx.Tx) (err error) {
		if snap.rules, err = listRules(ctx, tx); err != nil {
			return err
		}
		loaded, err := accounts.Load(ctx, tx)
		snap.accounts = loaded
		for i := range snap.rules {
			snap.ways = append(snap.ways, snap.rules[i].ways(loaded))
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read routes: %w", err)
	}
	return snap, nil
}
