package retention

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/relay/queue"
)

//go:embed *.sql
var files embed.FS

var texts = pg.Load(files)

var (
	sqlTurns     = texts.Bind("turns")
	sqlFirstTurn = texts.Bind("first_turn")
	sqlNextTurn  = texts.Bind("next_turn", "turn", "next")
	sqlTurnWaits = texts.Bind("turn_waits", "turn")
	sqlMoveBody  = texts.Bind("move_body", "turn", "message_id")
	sqlClear     = texts.Bind("clear", "turn")
	sqlOrphans   = texts.Bind("orphans", "after", "rows")
)

const (
	turnEvery = 5 * time.Second        // the round that needs no message
	turnPause = 100 * time.Millisecond // between two rounds

	orphanRows  = 2000 // messages whose body one statement looks at
	orphanEvery = time.Minute
)

// bodies empties the tables of large bodies. They are written one after the other;
// one in which no message has a recipient left is truncated, written to or not.
//
// Nothing depends on who writes where: a table is looked through and truncated under
// a lock that keeps writers and readers out, so what is committed into it before is
// seen, and what comes later finds it empty. The lock is never waited for, and its
// holder waits for no other.
//
// Of small bodies it deletes those that the end of their message has left: two nodes that
// delete the last two rows of one message at the same moment both leave its body.
type bodies struct {
	cfg   Config
	conn  *pg.Dedicated
	grown chan struct{} // capacity 1: a large message was committed, and others may be finished by now
	every time.Duration
	bytes int64         // 64 MiB: a table with so much is followed by the next
	age   time.Duration // 1 min: or after so long, and as long again later what still waits in it moves

	walk    queue.ID  // where the walk over the small bodies is
	orphans time.Time // when it goes on
}

func newBodies(cfg Config) *bodies {
	return &bodies{cfg: cfg, conn: pg.NewDedicated(cfg.Pool, pg.TuneWork), grown: make(chan struct{}, 1),
		every: turnEvery, bytes: 64 << 20, age: time.Minute, orphans: time.Now().Add(orphanEvery)}
}

// LargeStored makes the next round of large bodies come soon: one was committed.
func (r *Retention) LargeStored() {
	select {
	case r.bodies.grown <- struct{}{}:
	default:
	}
}

func (t *bodies) run(ctx context.Context) {
	defer t.conn.Close()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.grown:
			select {
			case <-ctx.Done():
				return
			case <-time.After(turnPause):
			}
		case <-time.After(t.every):
		}
		if err := t.round(ctx); err != nil && ctx.Err() == nil {
			t.conn.Drop()
			if !t.cfg.Trouble(err) {
				t.cfg.Log.Warn("retention: cannot clear bodies, will retry", "error", err)
			}
		}
	}
}

// turn is one of the tables.
type turn struct {
	Turn    int16
	Writing bool
	Age     time.Duration // since writing changed
	Size    int64         // octets of its file
}

func (t *bodies) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := t.conn.Get(ctx)
	if err != nil {
		return err
	}
	err = t.tidy(ctx, conn)
	if now := time.Now(); now.After(t.orphans) {
		t.orphans = now.Add(orphanEvery)
		err = errors.Join(err, t.sweep(ctx, conn))
	}
	return t.conn.End(err)
}

func (t *bodies) tidy(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, sqlTurns)
	if err != nil {
		return fmt.Errorf("list turns: %w", err)
	}
	list, err := pgx.CollectRows(rows, pgx.RowToStructByPos[turn])
	if err != nil {
		return fmt.Errorf("list turns: %w", err)
	}
	var errs []error
	for i := range list {
		if u := &list[i]; u.Size > 0 {
			errs = append(errs, t.clear(ctx, conn, u))
		}
	}
	errs = append(errs, t.advance(ctx, conn, list))
	// Last, for it can fail where the rest cannot: a full disk must not keep what
	// would give room.
	for i := range list {
		if u := &list[i]; u.Size > 0 && !u.Writing && u.Age >= t.age {
			errs = append(errs, t.move(ctx, conn, u), t.clear(ctx, conn, u))
		}
	}
	return errors.Join(errs...)
}

// advance lets the next table that is empty be written to, if it is time.
func (t *bodies) advance(ctx context.Context, conn *pgx.Conn, list []turn) error {
	var writing, next *turn
	for i := range list {
		u := &list[i]
		switch {
		case u.Writing:
			writing = u
		case u.Size == 0:
			next = u
		}
	}
	if writing == nil { // a restore may have left it so
		if _, err := conn.Exec(ctx, sqlFirstTurn); err != nil {
			return fmt.Errorf("first turn: %w", err)
		}
		return nil
	}
	if next == nil || writing.Size == 0 || writing.Size < t.bytes && writing.Age < t.age {
		return nil
	}
	if _, err := conn.Exec(ctx, sqlNextTurn, writing.Turn, next.Turn); err != nil {
		return fmt.Errorf("next turn: %w", err)
	}
	return nil
}

// clear truncates u if nothing in it is waited for, and sets u.Size to 0 then.
func (t *bodies) clear(ctx context.Context, conn *pgx.Conn, u *turn) error {
	var cleared bool
	if err := conn.QueryRow(ctx, sqlClear, u.Turn).Scan(&cleared); err != nil {
		return fmt.Errorf("clear turn %d: %w", u.Turn, err)
	}
	if cleared {
		u.Size = 0
	}
	return nil
}

// move moves what still waits in u, each message in a transaction of its own.
func (t *bodies) move(ctx context.Context, conn *pgx.Conn, u *turn) error {
	rows, err := conn.Query(ctx, sqlTurnWaits, u.Turn)
	if err != nil {
		return fmt.Errorf("list what waits in turn %d: %w", u.Turn, err)
	}
	waits, err := pgx.CollectRows(rows, pgx.RowTo[queue.ID])
	if err != nil {
		return fmt.Errorf("list what waits in turn %d: %w", u.Turn, err)
	}
	var errs []error
	for _, id := range waits {
		if _, err := conn.Exec(ctx, sqlMoveBody, u.Turn, id); err != nil {
			errs = append(errs, fmt.Errorf("move body %s: %w", id, err))
			if len(errs) == 10 || conn.IsClosed() {
				break
			}
		}
	}
	return errors.Join(errs...)
}

// sweep deletes small bodies without recipients, a part of them at each call.
func (t *bodies) sweep(ctx context.Context, conn *pgx.Conn) error {
	var count int
	var last *string
	if err := conn.QueryRow(ctx, sqlOrphans, t.walk, orphanRows).Scan(&count, &last); err != nil {
		return fmt.Errorf("orphans: %w", err)
	}
	t.walk = queue.ID{}
	if count > 0 {
		t.walk, _ = uuid.Parse(*last)
	}
	return nil
}
