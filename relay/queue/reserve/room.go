package reserve

import (
	"cmp"
	"context"
	"embed"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/await"
	"postern/internal/pg"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

// ErrFull says that no mail is accepted because the disk of the database is full.
var ErrFull = errors.New("the disk of the database is full")

const (
	firstLook = 20 * time.Second
	tryEvery  = 30 * time.Second
	retry     = 250 * time.Millisecond // after trouble
	notice    = 2 * time.Second        // for other nodes to hear that the disk is full, and their commits to fail

	step  = 1 << 20 // octets that are added to the reserve at a time
	pause = 10 * time.Millisecond
)

// Config configures a Room; zero durations take the defaults named.
type Config struct {
	Pool *pgxpool.Pool
	Log  *slog.Logger
	Size int64 // octets of the reserve; 0 keeps nothing
	// DiskFree is how many octets are free on the database's disk; nil where that cannot be asked.
	DiskFree func() (int64, error)
	// Announce tells the other nodes that the disk is full. Nodes that miss it find out when they
	// look.
	Announce func(context.Context)
	// Written returns when what this node was writing has ended, for good or ill; nil: nothing is.
	Written func()

	Look  time.Duration // between looks at the state of all nodes
	First time.Duration // 20 s: then a missing reserve is made
	Again time.Duration // 30 s: between tries for room, of all nodes
}

// Room knows whether the disk has room, and keeps the reserve.
type Room struct {
	cfg   Config
	first time.Time
	kick  chan struct{} // capacity 1: a statement found the disk full
	doubt chan struct{} // capacity 1: the server may have died of it
	had   time.Time     // the start of the server that had a reserve at the last look; zero for none

	full  atomic.Bool // of all nodes, as far as this node knows
	tight atomic.Bool // too little is free, if the disk can be asked
}

// New makes a Room; Run does its work.
func New(cfg Config) *Room {
	cfg.First, cfg.Again = cmp.Or(cfg.First, firstLook), cmp.Or(cfg.Again, tryEvery)
	return &Room{cfg: cfg, first: time.Now().Add(cfg.First), kick: make(chan struct{}, 1), doubt: make(chan struct{}, 1)}
}

// isFull reports that the server could not write for want of room.
func isFull(err error) bool { return pg.Code(err) == "53100" }

// Heard takes trouble. A full disk ends accepting immediately. A server without room for its
// write-ahead log dies, and is back before it could report why.
func (r *Room) Heard(err error) {
	signal := r.doubt
	switch c := pg.Class(err); {
	case isFull(err):
		r.Tell(true)
		signal = r.kick
	case err == nil || c != "" && c != "57":
		return
	}
	select {
	case signal <- struct{}{}:
	default:
	}
}

// Refuses is ErrFull while nothing is accepted. If the disk can be asked, that begins before
// it is full: when no more is free than the reserve.
func (r *Room) Refuses() error {
	if r.full.Load() {
		return ErrFull
	}
	free, known := r.free()
	tight := known && free < r.cfg.Size
	switch was := r.tight.Swap(tight); {
	case tight && !was:
		r.cfg.Log.Error("queue: the disk of the database is nearly full: no mail is accepted until there is room", "free", free)
	case was && !tight:
		r.cfg.Log.Info("queue: the disk of the database has room again", "free", free)
	}
	if tight {
		return ErrFull
	}
	return nil
}

// free is how much is free on the database's disk, if it can be asked.
func (r *Room) free() (octets int64, known bool) {
	if r.cfg.DiskFree == nil {
		return 0, false
	}
	octets, err := r.cfg.DiskFree()
	return octets, err == nil
}

// Full reports whether the disk was full when this node last heard of it.
func (r *Room) Full() bool { return r.full.Load() }

// Tell notes whether the disk is full, and logs it when that changes.
func (r *Room) Tell(full bool) {
	switch was := r.full.Swap(full); {
	case full && !was:
		r.cfg.Log.Error("queue: no mail is accepted until there is room on the disk of the database")
	case was && !full:
		r.cfg.Log.Info("queue: there is room on the disk of the database again")
	}
}

// Run gives the reserve back when it is needed, trying until that succeeds, and maintains it
// otherwise.
func (r *Room) Run(ctx context.Context) {
	needed, wait := false, r.cfg.Look
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
			needed = true
		case <-r.doubt:
		case <-time.After(wait):
		}
		do := r.Look
		if needed {
			do = r.give
		}
		err := do(ctx)
		needed, wait = needed && err != nil, r.cfg.Look
		if err != nil && ctx.Err() == nil {
			wait = min(wait, retry)
			if isFull(err) || !pg.IsDown(err) {
				r.cfg.Log.Warn("queue: cannot maintain the reserve, will retry", "error", err)
			}
		}
	}
}

var (
	sqlRoom     = texts.Bind("room")
	sqlFull     = texts.Bind("full")
	sqlTry      = texts.Bind("try", "again")
	sqlHasRoom  = texts.Bind("has_room")
	sqlLeave    = texts.Bind("leave")
	sqlReserved = texts.Bind("reserved")
	sqlGiveBack = texts.Bind("give_back")
)

// Look reads the state of all nodes. A reserve lost by a crash or a restore is made again; a
// partial one is enough.
func (r *Room) Look(ctx context.Context) error {
	_ = r.Refuses() // logs a change even while nobody sends
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var full bool
	var size int64
	var server time.Time
	if err := r.cfg.Pool.QueryRow(ctx, sqlRoom).Scan(&full, &size, &server); err != nil {
		return fmt.Errorf("look at the reserve: %w", err)
	}
	lacks := size < r.cfg.Size/4
	if lacks && server.Equal(r.had) && !full {
		// It has crashed. Its recovery needed the room, whatever the cause; mail must not take it.
		r.Tell(true)
		if _, err := r.cfg.Pool.Exec(ctx, sqlFull); err != nil {
			return fmt.Errorf("note that the disk may be full: %w", err)
		}
		r.had = time.Time{}
		return r.tryAgain(ctx, size, 0)
	}
	if !lacks {
		r.had = server
	}
	r.Tell(full)
	if full || lacks && time.Now().After(r.first) {
		return r.tryAgain(ctx, size, r.cfg.Again)
	}
	return nil
}

// give frees the reserve once nobody writes mail that would use it up: it waits for what this node is
// writing, and tells the other nodes, which may also find the disk full themselves.
func (r *Room) give(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r.Tell(true) // a look that began before the disk was full may have said otherwise
	_, err := r.cfg.Pool.Exec(ctx, sqlFull)
	if err != nil && !isFull(err) {
		return fmt.Errorf("note that the disk is full: %w", err)
	}
	r.cfg.Announce(ctx)
	others := time.After(notice)
	if r.cfg.Written != nil {
		if err := await.All(ctx, r.cfg.Written); err != nil {
			return fmt.Errorf("wait for mail that is being written: %w", err)
		}
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-others:
	}
	if empty := r.empty(ctx); empty != nil || err == nil {
		return empty
	}
	_, err = r.cfg.Pool.Exec(ctx, sqlFull)
	return err
}

func (r *Room) empty(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, r.cfg.Pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local lock_timeout = '5s'`); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, sqlGiveBack)
		return err
	})
	if err != nil {
		return fmt.Errorf("give the reserve back: %w", err)
	}
	return nil
}

// tryAgain makes the full reserve, or half of the free room if that is worthwhile; the other
// half is for mail. Then mail is accepted again. One node tries at a time, some time after
// the last one.
func (r *Room) tryAgain(ctx context.Context, size int64, after time.Duration) error {
	if free, known := r.free(); known && free < 2*r.cfg.Size-size {
		return nil
	}
	var full bool
	err := r.cfg.Pool.QueryRow(ctx, sqlTry, after).Scan(&full)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("try for room: %w", err)
	}
	r.Tell(full)
	got, err := r.fill(ctx, r.cfg.Size)
	if isFull(err) {
		if err := r.empty(ctx); err != nil {
			return err
		}
		if got < r.cfg.Size/2 {
			r.Tell(true)
			_, err := r.cfg.Pool.Exec(ctx, sqlFull)
			return err
		}
		_, err = r.fill(ctx, got/2)
	}
	if err == nil {
		_, err = r.cfg.Pool.Exec(ctx, sqlHasRoom)
	}
	switch {
	case err == nil:
		r.Tell(false)
	case ctx.Err() != nil: // this node is stopping, or the reserve is large: the server did not die
		brief, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		_, _ = r.cfg.Pool.Exec(brief, sqlLeave)
	}
	return err
}

// errUndone rolls back the rows that fill the reserve; their pages stay.
var errUndone = errors.New("undone")

// fill grows the reserve to a size, and returns the size reached.
func (r *Room) fill(ctx context.Context, want int64) (size int64, err error) {
	const octets = 15000 / 8
	row := []any{pgtype.Bits{Bytes: make([]byte, octets), Len: 8 * octets, Valid: true}}
	for {
		if err := r.cfg.Pool.QueryRow(ctx, sqlReserved).Scan(&size); err != nil || size >= want {
			return size, err
		}
		err := pgx.BeginFunc(ctx, r.cfg.Pool, func(tx pgx.Tx) error {
			rows := pgx.CopyFromSlice(step/octets, func(int) ([]any, error) { return row, nil })
			if _, err := tx.CopyFrom(ctx, pgx.Identifier{"reserve"}, []string{"filler"}, rows); err != nil {
				return err
			}
			return errUndone
		})
		if !errors.Is(err, errUndone) {
			return size, fmt.Errorf("fill the reserve: %w", err)
		}
		select {
		case <-ctx.Done():
			return size, ctx.Err()
		case <-time.After(pause):
		}
	}
}
