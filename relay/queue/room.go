package queue

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"postern/internal/pg"
)

// ErrFull says that no mail is accepted because the disk of the database is full.
var ErrFull = errors.New("the disk of the database is full")

const (
	roomFirst  = 20 * time.Second       // after the start, a missing reserve is made
	roomAgain  = 30 * time.Second       // between checks for room
	roomNotice = 250 * time.Millisecond // for commits to fail, and other nodes to hear of it

	reserveStep  = 1 << 20 // octets that are added to the reserve at a time
	reservePause = 10 * time.Millisecond
)

// room keeps a part of the database's disk in reserve and gives it back when the disk is
// full. Then no mail is accepted, but outcomes can be written, so the queue drains and makes
// room. See docs/decisions/reserve.md.
type room struct {
	q     *Queue
	want  int64 // octets of the reserve; 0 for none
	first time.Time
	again time.Duration
	kick  chan struct{} // capacity 1: a statement found the disk full
	doubt chan struct{} // capacity 1: the server may have died of it
	had   time.Time     // the start of the server that had a reserve at the last look; zero for none

	full  atomic.Bool // of all nodes, as far as this node knows
	tight atomic.Bool // too little is free, if the disk can be asked
}

func newRoom(q *Queue) *room {
	return &room{q: q, want: q.cfg.Reserve, first: time.Now().Add(roomFirst), again: roomAgain,
		kick: make(chan struct{}, 1), doubt: make(chan struct{}, 1)}
}

// isFull reports that the server could not write for want of room.
func isFull(err error) bool { return pg.Code(err) == "53100" }

// heard takes trouble. A full disk ends accepting immediately. A server without room for its
// write-ahead log dies, and is back before it could report why.
func (r *room) heard(err error) {
	signal := r.doubt
	switch c := pg.Class(err); {
	case isFull(err):
		r.tell(true)
		signal = r.kick
	case err == nil || c != "" && c != "57":
		return
	}
	select {
	case signal <- struct{}{}:
	default:
	}
}

// refuses is ErrFull while nothing is accepted. If the disk can be asked, that begins before
// it is full: when no more is free than the reserve.
func (r *room) refuses() error {
	if r.full.Load() {
		return ErrFull
	}
	free, known := r.free()
	tight := known && free < r.want
	switch was := r.tight.Swap(tight); {
	case tight && !was:
		r.q.log.Error("queue: the disk of the database is nearly full: no mail is accepted until there is room", "free", free)
	case was && !tight:
		r.q.log.Info("queue: the disk of the database has room again", "free", free)
	}
	if tight {
		return ErrFull
	}
	return nil
}

// free is how much is free on the database's disk, if it can be asked.
func (r *room) free() (octets int64, known bool) {
	if r.q.cfg.DiskFree == nil {
		return 0, false
	}
	octets, err := r.q.cfg.DiskFree()
	return octets, err == nil
}

// tell notes whether the disk is full, and logs it when that changes.
func (r *room) tell(full bool) {
	switch was := r.full.Swap(full); {
	case full && !was:
		r.q.log.Error("queue: no mail is accepted until there is room on the disk of the database")
	case was && !full:
		r.q.log.Info("queue: there is room on the disk of the database again")
	}
}

// run gives the reserve back when it is needed, trying until that succeeds, and maintains it
// otherwise.
func (r *room) run(ctx context.Context) {
	needed, wait := false, r.q.cfg.Heartbeat
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.kick:
			needed = true
		case <-r.doubt:
		case <-time.After(wait):
		}
		do := r.look
		if needed {
			do = r.give
		}
		err := do(ctx)
		needed, wait = needed && err != nil, r.q.cfg.Heartbeat
		if err != nil && ctx.Err() == nil {
			wait = min(wait, roomNotice)
			if isFull(err) || !pg.IsDown(err) {
				r.q.log.Warn("queue: cannot maintain the reserve, will retry", "error", err)
			}
		}
	}
}

// These update the one row of table room in place, which needs no space.
const (
	sqlRoom = `select full_at is not null, pg_relation_size('reserve'), pg_postmaster_start_time() from room`
	sqlFull = `update room set full_at = coalesce(full_at, clock_timestamp()), tried_at = clock_timestamp(), trying = false`
	// An earlier try that has not ended was the end of its server, or of its node. One in the
	// future was made before the clock was set back.
	sqlTryRoom = `update room set tried_at = clock_timestamp(), trying = true,
	full_at = case when trying then coalesce(full_at, clock_timestamp()) else full_at end
where tried_at not between clock_timestamp() - $1::interval and clock_timestamp() + interval '1 minute' returning full_at is not null`
	sqlHasRoom   = `update room set full_at = null, trying = false`
	sqlLeaveRoom = `update room set trying = false`
)

// look reads the state of all nodes. A reserve lost by a crash or a restore is made again; a
// partial one is enough.
func (r *room) look(ctx context.Context) error {
	_ = r.refuses() // logs a change even while nobody sends
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var full bool
	var size int64
	var server time.Time
	if err := r.q.cfg.WorkPool.QueryRow(ctx, sqlRoom).Scan(&full, &size, &server); err != nil {
		return fmt.Errorf("look at the reserve: %w", err)
	}
	lacks := size < r.want/4
	if lacks && server.Equal(r.had) && !full {
		// It has crashed. Whatever the cause, its recovery needed the room, which mail must not take.
		r.tell(true)
		if _, err := r.q.cfg.WorkPool.Exec(ctx, sqlFull); err != nil {
			return fmt.Errorf("note that the disk may be full: %w", err)
		}
		r.had = time.Time{}
		return r.tryAgain(ctx, size, 0)
	}
	if !lacks {
		r.had = server
	}
	r.tell(full)
	if full || lacks && time.Now().After(r.first) {
		return r.tryAgain(ctx, size, r.again)
	}
	return nil
}

// give frees the reserve. Other nodes are told before, or find the disk full themselves, so
// that the mail they accept does not use it up.
func (r *room) give(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	r.tell(true) // a look that began before the disk was full may have said otherwise
	_, err := r.q.cfg.WorkPool.Exec(ctx, sqlFull)
	if err != nil && !isFull(err) {
		return fmt.Errorf("note that the disk is full: %w", err)
	}
	r.q.announceFull(ctx)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(roomNotice):
	}
	if empty := r.empty(ctx); empty != nil || err == nil {
		return empty
	}
	_, err = r.q.cfg.WorkPool.Exec(ctx, sqlFull)
	return err
}

// sqlGiveBack gives all of the reserve back to the file system.
const sqlGiveBack = `truncate reserve`

func (r *room) empty(ctx context.Context) error {
	err := pgx.BeginFunc(ctx, r.q.cfg.WorkPool, func(tx pgx.Tx) error {
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
func (r *room) tryAgain(ctx context.Context, size int64, after time.Duration) error {
	if free, known := r.free(); known && free < 2*r.want-size {
		return nil
	}
	var full bool
	err := r.q.cfg.WorkPool.QueryRow(ctx, sqlTryRoom, after).Scan(&full)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("try for room: %w", err)
	}
	r.tell(full)
	got, err := r.fill(ctx, r.want)
	if isFull(err) {
		if err := r.empty(ctx); err != nil {
			return err
		}
		if got < r.want/2 {
			r.tell(true)
			_, err := r.q.cfg.WorkPool.Exec(ctx, sqlFull)
			return err
		}
		_, err = r.fill(ctx, got/2)
	}
	if err == nil {
		_, err = r.q.cfg.WorkPool.Exec(ctx, sqlHasRoom)
	}
	switch {
	case err == nil:
		r.tell(false)
	case ctx.Err() != nil: // this node is stopping, or the reserve is large: the server did not die
		_ = bounded(context.WithoutCancel(ctx), func(ctx context.Context) error {
			_, err := r.q.cfg.WorkPool.Exec(ctx, sqlLeaveRoom)
			return err
		})
	}
	return err
}

// errUndone rolls back the rows that fill the reserve; their pages stay.
var errUndone = errors.New("undone")

// fill grows the reserve to a size, and returns the size reached.
func (r *room) fill(ctx context.Context, want int64) (size int64, err error) {
	const octets = 15000 / 8
	row := []any{pgtype.Bits{Bytes: make([]byte, octets), Len: 8 * octets, Valid: true}}
	for {
		if err := r.q.cfg.WorkPool.QueryRow(ctx, `select pg_relation_size('reserve')`).Scan(&size); err != nil || size >= want {
			return size, err
		}
		err := pgx.BeginFunc(ctx, r.q.cfg.WorkPool, func(tx pgx.Tx) error {
			rows := pgx.CopyFromSlice(reserveStep/octets, func(int) ([]any, error) { return row, nil })
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
		case <-time.After(reservePause):
		}
	}
}
