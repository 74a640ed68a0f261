package retention

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/panics"
	"postern/internal/pg"
	"postern/relay/queue"
)

const (
	retentionEvery = time.Minute
	retentionFirst = 5 * time.Second // within it the first round begins, not on all nodes together

	forgetLeast    = 100 // messages that one batch looks at
	forgetMost     = 2000
	forgetAttempts = 5000 // and attempts that it deletes at most
	forgetShort    = 50 * time.Millisecond
	forgetLong     = 250 * time.Millisecond
	forgetRest     = 3 // a pause is so many times as long as the batch before it

	forgetRows  = 1000   // of anomaly detection and the limits, in one statement
	forgetKeys  = 10_000 // of duplicates: as many as messages
	forgetTurns = 20     // statements of a kind in a round
)

var (
	sqlForget               = texts.Bind("forget", "first_kept", "messages", "since", "attempts", "rest", "every")
	sqlUnread               = texts.Bind("unread", "keep")
	sqlForgetNodes          = texts.Bind("forget_nodes")
	sqlForgetHolds          = texts.Bind("forget_holds")
	sqlForgetActivity       = texts.Bind("forget_activity", "rows")
	sqlForgetDuplicates     = texts.Bind("forget_duplicates", "rows")
	sqlForgetCorrespondents = texts.Bind("forget_correspondents", "rows", "keep")
	sqlForgetEvents         = texts.Bind("forget_events", "rows", "before")
	sqlForgetMarks          = texts.Bind("forget_marks", "rows", "before")
	sqlForgetUsers          = texts.Bind("forget_users", "rows", "before")
	sqlForgetUsage          = texts.Bind("forget_usage", "scope", "subject", "kind", "window_s", "rows")
)

// Config configures a Retention; zero durations take those of Defaults.
type Config struct {
	Pool  *pgxpool.Pool // the settings of its connections
	Log   *slog.Logger
	Guard *panics.Guard // keeps what panics from ending the process; may be nil

	History        time.Duration // after a message's end
	Correspondents time.Duration // how long it is known whom users wrote to

	// Trouble is told of errors and reports whether they are the database's, which others
	// log; nil for nobody.
	Trouble func(error) bool
}

// Defaults are the spans of a Retention that is given none.
func Defaults() Config {
	return Config{History: 30 * 24 * time.Hour, Correspondents: 365 * 24 * time.Hour}
}

// Retention deletes in small batches with pauses between them, over connections of its own.
// Any number of nodes may run one.
type Retention struct {
	cfg  Config
	log  *slog.Logger
	kept atomic.Int64 // the span of history

	conn  *pg.Dedicated
	every time.Duration
	rows  int           // messages that the next batch looks at
	rest  time.Duration // after it, for all nodes
	usage usageKey      // where the walk over the windows of limits is
	small time.Time     // when the smaller tables are next

	bodies *bodies

	stop context.CancelFunc
	loop sync.WaitGroup
}

// New makes a Retention; Start begins its work.
func New(cfg Config) *Retention {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	def := Defaults()
	cfg.History, cfg.Correspondents = cmp.Or(cfg.History, def.History), cmp.Or(cfg.Correspondents, def.Correspondents)
	if cfg.Trouble == nil {
		cfg.Trouble = func(error) bool { return false }
	}
	r := &Retention{cfg: cfg, log: cfg.Log, conn: pg.NewDedicated(cfg.Pool, pg.TuneWork), every: retentionEvery, rows: forgetLeast, rest: forgetShort, bodies: newBodies(cfg)}
	r.SetHistory(cfg.History)
	return r
}

// SetHistory changes how long history is kept, from the next batch on; 0 changes nothing.
func (r *Retention) SetHistory(span time.Duration) {
	if span > 0 {
		r.kept.Store(int64(span))
	}
}

// Start begins the work.
func (r *Retention) Start() {
	ctx, stop := context.WithCancel(context.Background())
	r.stop = stop
	r.loop.Go(func() { r.cfg.Guard.Keep(ctx, "retention", func() { r.run(ctx) }) })
	r.loop.Go(func() { r.cfg.Guard.Keep(ctx, "retention: bodies", func() { r.bodies.run(ctx) }) })
}

// Close ends the work. A batch that is under way is undone.
func (r *Retention) Close() {
	if r.stop != nil {
		r.stop()
		r.loop.Wait()
	}
}

func (r *Retention) run(ctx context.Context) {
	defer r.conn.Close()
	wait := rand.N(min(r.every, retentionFirst))
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		pause, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			r.conn.Drop()
			r.rows = forgetLeast
			if !r.cfg.Trouble(err) {
				r.log.Warn("retention: cannot delete old history, will retry", "error", err)
			}
		}
		if wait = pause; pause == 0 {
			wait = r.every
			r.conn.Close()
		}
	}
}

// round deletes a batch of history and, if it is time, from the smaller tables. It says
// how long to pause before the next batch, 0 if nothing is left to be done.
func (r *Retention) round(ctx context.Context) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	conn, err := r.conn.Get(ctx)
	if err != nil {
		return 0, err
	}
	pause, err := r.history(ctx, conn)
	if now := time.Now(); now.After(r.small) {
		r.small = now.Add(r.every)
		err = errors.Join(err, r.others(ctx, conn))
	}
	return pause, r.conn.End(err)
}

// history deletes a batch of history, unless another node does or has done so just now.
func (r *Retention) history(ctx context.Context, conn *pgx.Conn) (time.Duration, error) {
	var before time.Time
	if err := conn.QueryRow(ctx, sqlUnread, time.Duration(r.kept.Load())).Scan(&before); err != nil {
		return 0, fmt.Errorf("forget history: %w", err)
	}
	begin := time.Now()
	var more bool
	var gone int
	rest := r.rest
	err := conn.QueryRow(ctx, sqlForget, queue.FirstID(before), r.rows, before, forgetAttempts, rest, r.every).Scan(&more, &gone, nil)
	if errors.Is(err, pgx.ErrNoRows) {
		return 0, nil // another node is at it, or it is not yet time
	}
	if err != nil {
		return 0, fmt.Errorf("forget history: %w", err)
	}
	if gone > 0 {
		r.log.Debug("retention: deleted history", "messages", gone, "before", before)
	}
	if !more {
		return 0, nil
	}
	r.pace(time.Since(begin))
	return max(rest, r.rest), nil
}

// pace sets the size of the next batch and the pause after it by what the last one took.
func (r *Retention) pace(took time.Duration) {
	switch {
	case took < forgetShort:
		r.rows = min(2*r.rows, forgetMost)
	case took > forgetLong:
		r.rows = max(r.rows/2, forgetLeast)
	}
	r.rest = max(forgetRest*took, forgetShort)
}

// others deletes from the tables that are small, or seldom have something to be deleted.
func (r *Retention) others(ctx context.Context, conn *pgx.Conn) error {
	for _, sql := range []string{sqlForgetNodes, sqlForgetHolds} {
		if _, err := conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("forget nodes and holds: %w", err)
		}
	}
	if err := r.usages(ctx, conn); err != nil {
		return err
	}
	if err := forget(ctx, conn, sqlForgetActivity, forgetRows); err != nil {
		return fmt.Errorf("forget activity: %w", err)
	}
	if err := forget(ctx, conn, sqlForgetDuplicates, forgetKeys); err != nil {
		return fmt.Errorf("forget duplicates: %w", err)
	}
	if err := forget(ctx, conn, sqlForgetCorrespondents, forgetRows, r.cfg.Correspondents); err != nil {
		return fmt.Errorf("forget correspondents: %w", err)
	}
	var before time.Time
	if err := conn.QueryRow(ctx, sqlUnread, time.Duration(r.kept.Load())).Scan(&before); err != nil {
		return fmt.Errorf("forget events: %w", err)
	}
	for _, sql := range []string{sqlForgetEvents, sqlForgetMarks, sqlForgetUsers} {
		if err := forget(ctx, conn, sql, forgetRows, before); err != nil {
			return fmt.Errorf("forget events: %w", err)
		}
	}
	return nil
}

// forget runs a statement, whose first parameter is the most that it deletes, until it
// finds less, or often enough for this round.
func forget(ctx context.Context, conn *pgx.Conn, sql string, rows int, args ...any) error {
	for range forgetTurns {
		tag, err := conn.Exec(ctx, sql, append([]any{rows}, args...)...)
		if err != nil || tag.RowsAffected() < int64(rows) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(forgetShort):
		}
	}
	return nil
}

// usageKey is the key of a row of usage_window.
type usageKey struct {
	Scope, Subject, Kind string
	Window               int32
}

// usages walks on over the windows of limits; at the end it begins anew.
func (r *Retention) usages(ctx context.Context, conn *pgx.Conn) error {
	at := r.usage
	r.usage = usageKey{}
	err := conn.QueryRow(ctx, sqlForgetUsage, at.Scope, at.Subject, at.Kind, at.Window, forgetRows).
		Scan(&r.usage.Scope, &r.usage.Subject, &r.usage.Kind, &r.usage.Window)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("forget usage: %w", err)
	}
	return nil
}
