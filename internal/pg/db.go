package pg

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DB is a pool, a connection, or a transaction that the caller ends.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

var (
	_ DB = (*pgxpool.Pool)(nil)
	_ DB = (*pgx.Conn)(nil)
	_ DB = pgx.Tx(nil)
)

const sqlServerStart = `select pg_postmaster_start_time()`

// ServerStart asks when the server of conn started, which distinguishes it from a server that
// took its place.
func ServerStart(ctx context.Context, conn *pgx.Conn) (start time.Time, err error) {
	err = conn.QueryRow(ctx, sqlServerStart).Scan(&start)
	return start, err
}

// SQLSTATE codes that mean something to the person who asked.
const (
	UniqueViolation     = "23505"
	ForeignKeyViolation = "23503"
)

// Relaxed runs fn in a transaction whose commit does not wait for the disk: for what may
// be lost with the server, which an admin's decision never is.
func Relaxed(ctx context.Context, db DB, fn func(tx pgx.Tx) error) error {
	return pgx.BeginFunc(ctx, db, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, `set local synchronous_commit = off`); err != nil {
			return err
		}
		return fn(tx)
	})
}

const (
	// ExpireBatch is how many rows Expire deletes in one transaction.
	ExpireBatch = 1000
	expirePause = 100 * time.Millisecond
	expireTime  = 10 * time.Second // of one batch
)

// Expire deletes rows in batches, with pauses between them, until one is not full. sql
// deletes what is older than $1, keep, and no more than $2 rows; it skips rows that are
// locked, so that nodes that do so concurrently do not wait for each other.
func Expire(ctx context.Context, db DB, sql string, keep time.Duration) error {
	for {
		n, err := expireOnce(ctx, db, sql, keep)
		if err != nil || n < ExpireBatch {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(expirePause):
		}
	}
}

func expireOnce(ctx context.Context, db DB, sql string, keep time.Duration) (n int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, expireTime)
	defer cancel()
	err = Relaxed(ctx, db, func(tx pgx.Tx) error {
		tag, err := tx.Exec(ctx, sql, keep, ExpireBatch)
		n = tag.RowsAffected()
		return err
	})
	return n, err
}
