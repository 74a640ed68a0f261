package desk

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// Reader reads the state of the whole queue, of all nodes, and can change nothing: each
// of its transactions is read only.
type Reader struct{ pool *pgxpool.Pool }

// NewReader makes a Reader on a pool of its own, so that it waits for nobody's work.
func NewReader(pool *pgxpool.Pool) *Reader { return &Reader{pool} }

// Ping asks whether the database answers.
func (r *Reader) Ping(ctx context.Context) error {
	if err := r.pool.Ping(ctx); err != nil {
		return fmt.Errorf("ask the database: %w", err)
	}
	return nil
}

// AgeSteps are the ages, since acceptance, by which an Overview groups recipients.
func AgeSteps() []time.Duration { return append([]time.Duration(nil), ageSteps...) }

// States are the states of a live recipient.
func States() []State {
	return []State{StateWaiting, StateSending, StateHeld, StateFailed, StateDelivered}
}

// Overview is the queue in a fixed set of numbers.
type Overview struct {
	Shares  []Share
	Overdue time.Duration // since the first unclaimed recipient fell due
	Nodes   int           // that live
	Holds   int           // of users and of credentials
	Aside   int64         // recipients set aside: their rows are bad
	Retried int64         // recipients in doubt that are tried again
	Doubted int64         // recipients in doubt that are held for a person
	Took    time.Duration // to read it
}

// Share is the live recipients in one state and of one step of age.
type Share struct {
	State      State
	Step       int // the recipients are younger than AgeSteps[Step]; len(AgeSteps) is older than all
	Recipients int64
	Oldest     time.Duration // since acceptance, by the database's clock
}

const sqlOverviewSettings = `select set_config('max_parallel_workers_per_gather', '0', true), set_config('jit', 'off', true), set_config('statement_timeout', '30s', true)`

var (
	sqlShares = texts.Bind("shares", "ages")
	sqlRest   = texts.Bind("rest")
)

// Overview reads the whole queue, in one snapshot.
func (r *Reader) Overview(ctx context.Context) (Overview, error) {
	var o Overview
	began := time.Now()
	err := pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{IsoLevel: pgx.RepeatableRead, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		batch.Queue(sqlOverviewSettings)
		batch.Queue(sqlShares, ageSteps).Query(func(rows pgx.Rows) (err error) {
			o.Shares, err = pgx.CollectRows(rows, pgx.RowToStructByPos[Share])
			return err
		})
		batch.Queue(sqlRest).QueryRow(func(row pgx.Row) error {
			return row.Scan(&o.Overdue, &o.Nodes, &o.Holds, &o.Aside, &o.Retried, &o.Doubted)
		})
		return tx.SendBatch(ctx, batch).Close()
	})
	if err != nil {
		return Overview{}, fmt.Errorf("overview of the queue: %w", err)
	}
	o.Took = time.Since(began)
	return o, nil
}
