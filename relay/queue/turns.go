package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
)

var (
	sqlTurns     = texts.Bind("turns")
	sqlFirstTurn = texts.Bind("first_turn")
	sqlNextTurn  = texts.Bind("next_turn", "turn", "next")
	sqlTurnWaits = texts.Bind("turn_waits", "turn")
	sqlMoveBody  = texts.Bind("move_body", "turn", "message_id")
)

const turnPause = 100 * time.Millisecond // between two rounds

// turns empties the tables of large bodies. They are written one after the other;
// one in which no message has a recipient left is truncated, written to or not.
//
// Nothing depends on who writes where: a table is looked through and truncated under
// a lock that keeps writers and readers out, so what is committed into it before is
// seen, and what comes later finds it empty. The lock is never waited for, and its
// holder waits for no other.
type turns struct {
	q     *Queue
	s     *pg.Dedicated
	grown chan struct{} // capacity 1: a large message was committed, and others may be finished by now
	every time.Duration // the round that needs no message
	bytes int64         // 64 MiB: a table with so much is followed by the next
	age   time.Duration // 1 min: or after so long, and as long again later what still waits in it moves
}

func newTurns(q *Queue) *turns {
	return &turns{q: q, s: pg.NewDedicated(q.cfg.WorkPool, pg.TuneWork), grown: make(chan struct{}, 1),
		every: q.cfg.Heartbeat, bytes: 64 << 20, age: time.Minute}
}

// grow makes the next round come soon.
func (t *turns) grow() {
	select {
	case t.grown <- struct{}{}:
	default:
	}
}

func (t *turns) run(ctx context.Context) {
	defer t.s.Close()
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
			t.s.Drop()
			if !t.q.epochs.suspectIfDown(err) {
				t.q.log.Warn("queue: large bodies are cleared later", "error", err)
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

func (t *turns) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := t.s.Get(ctx)
	if err != nil {
		return err
	}
	return t.s.End(t.tidy(ctx, conn))
}

func (t *turns) tidy(ctx context.Context, conn *pgx.Conn) error {
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
func (t *turns) advance(ctx context.Context, conn *pgx.Conn, list []turn) error {
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

// sqlClear truncates a table in which nothing waits.
const sqlClear = `select clear_large_body($1)`

// clear truncates u if nothing in it is waited for, and sets u.Size to 0 then.
func (t *turns) clear(ctx context.Context, conn *pgx.Conn, u *turn) error {
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
func (t *turns) move(ctx context.Context, conn *pgx.Conn, u *turn) error {
	rows, err := conn.Query(ctx, sqlTurnWaits, u.Turn)
	if err != nil {
		return fmt.Errorf("list what waits in turn %d: %w", u.Turn, err)
	}
	waits, err := pgx.CollectRows(rows, pgx.RowTo[ID])
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
