package queue

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const turnPause = 100 * time.Millisecond // between two rounds

// turns empties the tables of large bodies. They are written one after the other;
// one in which no message has a recipient left is truncated, written to or not.
//
// Nothing depends on who writes where: a table is looked through and truncated under
// a lock that keeps writers and readers out, so what is committed into it before is
// seen, and what comes later finds it empty. The lock is never waited for, and who has
// it waits for no other.
type turns struct {
	q     *Queue
	s     *session
	grown chan struct{} // capacity 1: a large message was committed, and others may be finished by now
	every time.Duration // the round that needs no message
	bytes int64         // 64 MiB: a table with so much is followed by the next
	age   time.Duration // 1 min: or after so long, and as long again later what still waits in it moves
}

func newTurns(q *Queue) *turns {
	return &turns{q: q, s: newSession(q.cfg.WorkPool, tuneWork), grown: make(chan struct{}, 1),
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
	defer t.s.close()
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
			t.s.drop()
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

func (u *turn) table() string { return fmt.Sprintf("large_body_%d", u.Turn) }

// sqlTurns lists the tables.
const sqlTurns = `
select turn, writing, clock_timestamp() - changed_at, pg_relation_size(('large_body_' || turn)::regclass) from large_turn order by turn`

func (t *turns) round(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	conn, err := t.s.get(ctx)
	if err != nil {
		return err
	}
	return t.s.end(t.tidy(ctx, conn))
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
	var writing, next *turn
	for i := range list {
		u := &list[i]
		if u.Size > 0 {
			if err := t.clear(ctx, conn, u); err != nil {
				return fmt.Errorf("clear turn %d: %w", u.Turn, err)
			}
		}
		switch {
		case u.Writing:
			writing = u
		case u.Size == 0:
			next = u
		}
	}
	if writing == nil || next == nil || writing.Size == 0 || writing.Size < t.bytes && writing.Age < t.age {
		return nil
	}
	if _, err := conn.Exec(ctx, sqlNextTurn, writing.Turn, next.Turn); err != nil {
		return fmt.Errorf("next turn: %w", err)
	}
	return nil
}

// sqlNextTurn does nothing if another node was faster. (The one that is written to
// goes first, for the index that allows only one.)
const sqlNextTurn = `
with was as (update large_turn set writing = false, changed_at = clock_timestamp() where turn = $1 and writing returning turn)
update large_turn set writing = true, changed_at = clock_timestamp() where turn = $2 and not writing and exists (select from was)`

// turnWaits is the statement that lists the messages of one table that have recipients,
// stepping from message to message: each has hundreds of rows. It names the table
// itself: by way of large_body it would lock the others too.
func turnWaits(table string) string {
	return `
with recursive w(message_id) as (
	(select message_id from ` + table + ` order by message_id limit 1)
	union all
	select (select b.message_id from ` + table + ` b where b.message_id > w.message_id order by b.message_id limit 1)
	from w where w.message_id is not null)
select message_id from w where exists (select from recipient r where r.message_id = w.message_id)`
}

// sqlMoveBody moves one message's octets to where mail may wait for days.
const sqlMoveBody = `
with gone as (delete from large_body where turn = $1 and message_id = $2 returning message_id, n, chunk)
insert into body (message_id, n, chunk) select message_id, n, chunk from gone`

// clear truncates u if nothing in it is waited for; if it was left long ago, what
// is waited for moves first. It sets u.Size to 0 if the table is empty then.
func (t *turns) clear(ctx context.Context, conn *pgx.Conn, u *turn) error {
	waits, err := t.waits(ctx, conn, u)
	if err != nil {
		return err
	}
	if len(waits) > 0 && (u.Writing || u.Age < t.age) {
		return nil
	}
	for _, id := range waits {
		if _, err := conn.Exec(ctx, sqlMoveBody, u.Turn, id); err != nil {
			return fmt.Errorf("move body %s: %w", id, err)
		}
	}
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "lock table "+u.table()+" in access exclusive mode nowait"); err != nil {
			return err
		}
		if waits, err := t.waits(ctx, tx, u); err != nil || len(waits) > 0 {
			return err
		}
		_, err := tx.Exec(ctx, "truncate "+u.table())
		u.Size = 0
		return err
	})
	var pg *pgconn.PgError
	if errors.As(err, &pg) && pg.Code == "55P03" { // somebody writes or reads there
		return nil
	}
	return err
}

func (t *turns) waits(ctx context.Context, conn querier, u *turn) ([]ID, error) {
	rows, err := conn.Query(ctx, turnWaits(u.table()))
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[ID])
}
