package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/panics"
	"postern/internal/pg"
)

var (
	sqlMark   = texts.Bind("mark")
	sqlHolder = texts.Bind("holder")
)

// markEvery is how often a node asks whether a mark is due, and so how soon an incarnation begins after the
// database has become another one.
const markEvery = 5 * time.Second

// Mark writes the mark of this minute if no node has, and begins an incarnation if the database is
// not the one that it was.
func Mark(ctx context.Context, db pg.DB) error {
	var incarnation int64
	if err := db.QueryRow(ctx, sqlMark).Scan(&incarnation); err != nil {
		return fmt.Errorf("mark the feed: %w", err)
	}
	return nil
}

// Holder is a transaction that holds the feed back.
type Holder struct {
	Who   string // a process or a prepared transaction, with its database, role and application
	Since time.Time
}

// Hold returns what holds the feed back longest, nil for nothing.
func Hold(ctx context.Context, db pg.DB) (*Holder, error) {
	var h Holder
	err := db.QueryRow(ctx, sqlHolder).Scan(&h.Who, &h.Since)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ask what holds the feed: %w", err)
	}
	return &h, nil
}

// Marker writes marks for a node, and knows since when the feed is held back.
type Marker struct {
	db      pg.DB
	log     *slog.Logger
	guard   *panics.Guard
	failing bool
	held    atomic.Pointer[Holder]
	stop    context.CancelFunc
	loop    sync.WaitGroup
}

// NewMarker makes a Marker; guard, which may be nil, keeps a panic from ending the process.
func NewMarker(db pg.DB, log *slog.Logger, guard *panics.Guard) *Marker {
	return &Marker{db: db, log: log, guard: guard}
}

// Start marks the feed, as ctx allows, and goes on until Close. A database that does not answer now
// is marked later.
func (m *Marker) Start(ctx context.Context) {
	m.mark(ctx)
	background, stop := context.WithCancel(context.Background())
	m.stop = stop
	m.loop.Go(func() { m.guard.Keep(background, "the feed's marks", func() { m.run(background) }) })
}

// Close ends the work.
func (m *Marker) Close() {
	if m.stop != nil {
		m.stop()
		m.loop.Wait()
	}
}

// HeldFor is for how long an open transaction has held the feed back, as of the last look.
func (m *Marker) HeldFor() time.Duration {
	if h := m.held.Load(); h != nil {
		return max(time.Since(h.Since), 0)
	}
	return 0
}

func (m *Marker) run(ctx context.Context) {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.mark(ctx)
		}
	}
}

func (m *Marker) mark(ctx context.Context) {
	brief, cancel := context.WithTimeout(ctx, 2*markEvery)
	defer cancel()
	err := Mark(brief, m.db)
	if err == nil {
		var held *Holder
		if held, err = Hold(brief, m.db); err == nil {
			m.held.Store(held)
		}
	}
	if err != nil && !m.failing && ctx.Err() == nil {
		m.log.Warn("feed: cannot write a mark, will retry; until then, readers would get more events again after a restart or restore of the database", "error", err)
	}
	m.failing = err != nil
}
