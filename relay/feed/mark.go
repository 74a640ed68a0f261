package feed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

var (
	sqlMark   = texts.Bind("mark")
	sqlHolder = texts.Bind("holder")
)

// markEvery is how often a node asks whether a mark is due: so an incarnation begins soon after the
// database is another one.
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

// Marker writes marks for a node.
type Marker struct {
	DB  pg.DB
	Log *slog.Logger
}

// Run marks the feed until ctx ends.
func (m *Marker) Run(ctx context.Context) {
	tick := time.NewTicker(markEvery)
	defer tick.Stop()
	failing := false
	for {
		brief, cancel := context.WithTimeout(ctx, 2*markEvery)
		err := Mark(brief, m.DB)
		cancel()
		if err != nil && !failing && ctx.Err() == nil {
			m.Log.Warn("feed: a mark cannot be written; readers of events will see more of them again", "error", err)
		}
		failing = err != nil
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
