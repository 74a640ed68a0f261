package database

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Pooler is what stands between this process and its database server, as far as that
// shows.
type Pooler struct {
	mode       pgx.QueryExecMode // in which a node speaks
	Shares     bool              // a connection of ours has another one of the server's by the transaction
	Statements error             // why prepared statements get lost, or transactions, nil if they do not
}

// poolerRounds is how often two connections are compared. One that is lent by the
// transaction is lent to both, or is not always the same, unless the pooler is very busy.
const poolerRounds = 10

// LookForPooler compares two new connections.
func (c *Connector) LookForPooler(ctx context.Context, url string) (p Pooler, err error) {
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		return p, databaseURLError()
	}
	p.mode = cfg.DefaultQueryExecMode
	var pair [2]*pgx.Conn
	for i := range pair {
		if pair[i], err = c.Connect(ctx, url); err != nil {
			return p, err
		}
		defer pair[i].Close(context.WithoutCancel(ctx))
	}
	if p.Shares, err = shares(ctx, pair); err != nil {
		return p, fmt.Errorf("look for a pooler: %w", err)
	}
	if !p.Shares {
		return p, nil
	}
	if p.mode == pgx.QueryExecModeCacheStatement {
		p.Statements = loseStatements(ctx, pair)
	}
	if p.Statements == nil {
		p.Statements = refuseTransactions(ctx, pair[0])
	}
	return p, nil
}

// Shares says that the connections of a pair do not have one of the server's each.
func shares(ctx context.Context, pair [2]*pgx.Conn) (bool, error) {
	var first [2]int
	for range poolerRounds {
		for i, conn := range pair {
			var pid int
			if err := conn.QueryRow(ctx, `select pg_backend_pid()`).Scan(&pid); err != nil {
				return false, err
			}
			if first[i] == 0 {
				first[i] = pid
			}
			if pid != first[i] || pid == first[1-i] {
				return true, nil
			}
		}
	}
	return false, nil
}

// loseStatements is how a pair of connections that share fails with prepared statements:
// one is there already (42P05), or not any more (26000).
func loseStatements(ctx context.Context, pair [2]*pgx.Conn) (lost error) {
	name := "postern_check_" + rand.Text()[:10]
	made := 0
	defer func() { forget(ctx, pair, name, made) }()
	for _, conn := range pair {
		if _, err := conn.Prepare(ctx, name, `select 1`); err != nil {
			return err
		}
		made++
	}
	for range poolerRounds {
		for _, conn := range pair {
			if _, err := conn.Exec(ctx, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// forget takes a statement off the server's connections on which it was made, as far as
// the pooler lends those again. Where it keeps statements for its clients, it has one of
// its own for them, which is for the pooler to close.
func forget(ctx context.Context, pair [2]*pgx.Conn, name string, made int) {
	for range poolerRounds {
		for _, conn := range pair {
			if made == 0 {
				return
			}
			if _, err := conn.PgConn().Exec(ctx, `deallocate `+pgx.Identifier{name}.Sanitize()).ReadAll(); err == nil {
				made--
			}
		}
	}
}

// refuseTransactions is what a pooler says that lends connections by the statement.
func refuseTransactions(ctx context.Context, conn *pgx.Conn) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `select 1`)
		return err
	})
}

var (
	ErrQueryMode = errors.New("a node cannot send its statements in this query mode: remove default_query_exec_mode from the URL," +
		" or set it to cache_describe if a pooler lends connections by transaction")
	errPoolerStatements = errors.New("a pooler in front of the database lends connections by transaction and loses prepared statements:" +
		" let it lend them by session, or by transaction with default_query_exec_mode=cache_describe in the URL (docs/postgres.md)")
)

// Refusal is why no node can run behind p: it would accept mail that it cannot deliver.
func (p Pooler) Refusal() error {
	switch p.mode {
	case pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		return fmt.Errorf("default_query_exec_mode: %w", ErrQueryMode)
	case pgx.QueryExecModeDescribeExec: // it prepares, and runs what was prepared in another transaction
		if p.Shares {
			return errPoolerStatements
		}
	}
	if p.Statements == nil {
		return nil
	}
	var said *pgconn.PgError
	if errors.As(p.Statements, &said) {
		return fmt.Errorf("%w: %s (%s)", errPoolerStatements, said.Message, said.Code)
	}
	return fmt.Errorf("%w: %w", errPoolerStatements, p.Statements)
}

// ModeName is the query mode as a URL has it.
func (p Pooler) ModeName() string { return strings.ReplaceAll(p.mode.String(), " ", "_") }
