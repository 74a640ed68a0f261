package suppression

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/smtp"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlFind    = texts.Bind("find", "user_id", "addresses")
	sqlChanges = texts.Bind("changes", "since", "most")
	sqlHits    = texts.Bind("hits", "user_id", "address", "n", "at")
	sqlPrune   = texts.Bind("prune", "most")
)

const (
	lookEvery  = time.Second
	trustTime  = 2 * time.Second // since a look began: then the database is asked about each address
	callTime   = 5 * time.Second // bounds one statement
	tidyEvery  = time.Hour       // old entries go, and what is known is read anew
	maxKnown   = 1 << 20         // addresses in memory: beyond it the database is asked about each address
	maxHits    = 1 << 12         // entries whose hits wait to be written
	hitsEvery  = 5 * time.Second
	prunedOnce = 10_000
)

// Config configures a List.
type Config struct {
	DB  pg.DB        // a pool
	Log *slog.Logger // trouble; nil: nowhere
}

// List is what a node knows of the entries. Its methods may be called concurrently.
type List struct {
	cfg  Config
	seed maphash.Seed

	mu    sync.RWMutex
	known map[uint64]struct{} // addresses and patterns with an entry of any user; some may have ended
	asked time.Time           // when the last look began that succeeded; zero: none is trusted
	full  bool                // there are too many to be known
	hits  map[hitKey]hit

	// Of Run alone.
	since   string    // the transaction from which on the next look asks; "": from the beginning
	tidied  time.Time // of the last tidying
	trouble bool      // the last look failed
}

type hitKey struct {
	user    int64
	address string
}

type hit struct {
	n  int64
	at time.Time
}

// New returns a List that knows nothing until Run has looked.
func New(cfg Config) *List {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &List{cfg: cfg, seed: maphash.MakeSeed(), known: make(map[uint64]struct{}), hits: make(map[hitKey]hit)}
}

// Find returns the entry that keeps mail of a user from an address, nil if there is none. Errors are
// the database's.
func (l *List) Find(ctx context.Context, user int64, to smtp.Address) (*Entry, error) {
	if !l.Maybe(to) {
		return nil, nil
	}
	return Find(ctx, l.cfg.DB, user, to)
}

// Find returns the same as List.Find, and always asks the database.
func Find(ctx context.Context, db pg.DB, user int64, to smtp.Address) (*Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	rows, err := db.Query(ctx, sqlFind, user, keys(to))
	if err == nil {
		var e Entry
		e, err = pgx.CollectExactlyOneRow(rows, scan)
		if err == nil {
			return &e, nil
		}
		if errors.Is(err, pgx.ErrNoRows) {
			return nil, nil
		}
	}
	return nil, fmt.Errorf("look for a suppressed address: %w", err)
}

// scan reads the columns of an entry.
func scan(row pgx.CollectableRow) (e Entry, err error) {
	err = row.Scan(&e.UserID, &e.Address, &e.Source, &e.Reason, &e.Reply, &e.MessageID, &e.AddedAt, &e.ExpiresAt, &e.Hits, &e.LastHitAt)
	return e, err
}

// Refused counts a recipient that was refused, or failed, because of an entry.
func (l *List) Refused(e *Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	key := hitKey{e.UserID, e.Address}
	if h, there := l.hits[key]; there || len(l.hits) < maxHits {
		l.hits[key] = hit{h.n + 1, time.Now()}
	}
}

// Maybe reports whether an address may have an entry of any user, or match one, as far as memory tells.
func (l *List) Maybe(a smtp.Address) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	switch {
	case l.full || time.Since(l.asked) > trustTime:
		return true
	case len(l.known) == 0:
		return false
	}
	for _, key := range keys(a) {
		if _, there := l.known[maphash.String(l.seed, key)]; there {
			return true
		}
	}
	return false
}

// Entries is how many addresses are in memory; -1 if there are too many, or before the first look.
func (l *List) Entries() int {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.full || l.asked.IsZero() {
		return -1
	}
	return len(l.known)
}

// Run follows the table until ctx ends, and then writes the last hits.
func (l *List) Run(ctx context.Context) {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	written := time.Now()
	for {
		l.look(ctx)
		if time.Since(written) >= hitsEvery {
			l.writeHits(ctx)
			written = time.Now()
		}
		select {
		case <-ctx.Done():
			l.writeHits(context.WithoutCancel(ctx))
			return
		case <-tick.C:
		}
	}
}

// look learns what is new. After trouble all is read anew: the database may be another one.
func (l *List) look(ctx context.Context) {
	began := time.Now()
	if began.Sub(l.tidied) > tidyEvery {
		l.tidied = began
		if err := l.prune(ctx); err != nil {
			l.cfg.Log.Warn("cannot delete old suppressions", "error", err)
		}
		l.since = ""
	} else if l.full { // until the next tidying
		return
	}
	err := l.read(ctx, began)
	if err != nil {
		l.since = ""
	}
	if was := l.trouble; ctx.Err() == nil && (err != nil) != was {
		if l.trouble = err != nil; l.trouble {
			l.cfg.Log.Warn("cannot follow the suppressions; each recipient is looked for in the database", "error", err)
		} else {
			l.cfg.Log.Info("the suppressions can be followed again")
		}
	}
}

func (l *List) read(ctx context.Context, began time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, 10*callTime)
	defer cancel()
	from := l.since
	if from == "" {
		from = "0"
	}
	rows, err := l.cfg.DB.Query(ctx, sqlChanges, from, maxKnown+1)
	if err != nil {
		return fmt.Errorf("read suppressions: %w", err)
	}
	var since string
	var address *string
	var news []uint64
	_, err = pgx.ForEachRow(rows, []any{&since, &address}, func() error {
		if address != nil {
			news = append(news, maphash.String(l.seed, *address))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("read suppressions: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.since == "" {
		l.known = make(map[uint64]struct{}, len(news))
	}
	for _, key := range news {
		l.known[key] = struct{}{}
	}
	if l.full = len(l.known) > maxKnown; l.full {
		l.known, since = make(map[uint64]struct{}), ""
	}
	l.since, l.asked = since, began
	return nil
}

func (l *List) prune(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 10*callTime)
	defer cancel()
	for {
		tag, err := l.cfg.DB.Exec(ctx, sqlPrune, prunedOnce)
		if err != nil || tag.RowsAffected() < prunedOnce {
			return err
		}
	}
}

// writeHits adds the hits to their entries. Those of the last seconds before a crash are lost.
func (l *List) writeHits(ctx context.Context) {
	l.mu.Lock()
	hits := l.hits
	l.hits = make(map[hitKey]hit)
	l.mu.Unlock()
	if len(hits) == 0 {
		return
	}
	var users, counts []int64
	var addresses []string
	var at []time.Time
	for key, h := range hits {
		users, addresses, counts, at = append(users, key.user), append(addresses, key.address), append(counts, h.n), append(at, h.at)
	}
	ctx, cancel := context.WithTimeout(ctx, callTime)
	defer cancel()
	err := pg.Relaxed(ctx, l.cfg.DB, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, sqlHits, users, addresses, counts, at)
		return err
	})
	if err != nil {
		l.cfg.Log.Warn("cannot count suppressed recipients", "error", err)
	}
}
