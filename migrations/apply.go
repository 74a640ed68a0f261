package migrations

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// ErrNewer means that the database holds a migration that this program does
// not carry and cannot run with: a newer program has migrated it, and this one must
// not touch it.
var ErrNewer = errors.New("the database was migrated by a newer version of this program")

// ErrChanged means that a migration's text is no longer the one that the
// database has applied, so nobody can say what the schema is.
var ErrChanged = errors.New("a migration was changed after it was applied")

// lockKey is the advisory lock under which each step is taken. Advisory locks
// are counted for each database, and this number means nothing elsewhere.
const lockKey int64 = 0x706f737465726e // "postern"

// A file waits for a table that somebody uses for lockWait: statements behind it wait
// for the table as well, and while nodes run that is mail. Then the file is begun again
// after lockPause, in which those behind go ahead.
const (
	lockWait  = 3 * time.Second
	lockPause = time.Second
)

// schema_migration has one row for each applied file; it is read by its key
// alone.
const createTable = `
create table if not exists schema_migration (
	version    integer primary key check (version > 0),
	oldest     integer not null check (oldest between 1 and version),
	applied_at timestamptz not null default now(),
	name       text not null,
	checksum   text not null
)`

// Status compares a database with the migrations that this program carries.
type Status struct {
	Applied []Applied   // what the database has, in order
	Pending []Migration // what Apply would run, in order
	Unknown []Applied   // of Applied, what this program does not carry; see Ahead
	Changed []Applied   // of Applied, what has another text in this program

	newest int // version that this program carries
}

// Applied is one row of schema_migration.
type Applied struct {
	Version  int
	Name     string
	Checksum string
	At       time.Time
	Oldest   int // the version that a program must know to run on this database
}

// String is the name of the file that was applied, without its extension.
func (a Applied) String() string {
	return Migration{Version: a.Version, Name: a.Name}.String()
}

// Ahead says that the database is of a newer version of this program, and that this
// one may run on it.
func (s Status) Ahead() bool { return len(s.Unknown) > 0 && s.Err() == nil }

// Err is nil when this program may use the database or bring it up to date:
// pending migrations are no error here. Else it wraps ErrNewer or ErrChanged.
func (s Status) Err() error {
	if len(s.Changed) > 0 { // first: files of the same numbers may be unknown as well
		return fmt.Errorf("%w: %s; run the version that applied it, or migrate an empty database: one made before version 0.1.0 cannot be upgraded",
			ErrChanged, names(s.Changed))
	}
	for _, row := range s.Unknown {
		if row.Oldest > s.newest {
			return fmt.Errorf("%w: it has %s, which this one does not know and cannot run with", ErrNewer, names(s.Unknown))
		}
	}
	if len(s.Unknown) > 0 && len(s.Pending) > 0 {
		return fmt.Errorf("%w: it has %s but not %s", ErrNewer, names(s.Unknown), s.Pending[0])
	}
	return nil
}

func names(rows []Applied) string {
	var list []string
	for _, row := range rows {
		list = append(list, row.String())
	}
	return strings.Join(list, ", ")
}

// Check says how the database differs from this program's schema. It changes
// nothing, and a database that was never migrated is not an error.
func Check(ctx context.Context, conn *pgx.Conn) (Status, error) {
	set, err := All()
	if err != nil {
		return Status{}, err
	}
	return check(ctx, conn, set)
}

// Apply brings the database up to this program's schema and tells log, which
// may be nil, of each file that it applied. When several call it concurrently, each
// file is applied by one of them and all return when the last one is done.
func Apply(ctx context.Context, conn *pgx.Conn, log func(string)) error {
	set, err := All()
	if err != nil {
		return err
	}
	return apply(ctx, conn, set, log)
}

func apply(ctx context.Context, conn *pgx.Conn, set []Migration, log func(string)) error {
	if log == nil {
		log = func(string) {}
	}
	waiting := false
	for {
		done, err := step(ctx, conn, set)
		switch {
		case inTheWay(err):
			if !waiting {
				log("waiting for a table that another session uses, as a backup does; pg_stat_activity shows it")
			}
			waiting = true
			select {
			case <-time.After(lockPause):
			case <-ctx.Done():
				return fmt.Errorf("migrate: %w", err)
			}
		case err != nil:
			return fmt.Errorf("migrate: %w", err)
		case done == nil:
			return nil
		default:
			log("applied migration " + done.String())
			waiting = false
		}
	}
}

// inTheWay reports that a statement failed because others hold a lock that it needs:
// lock_not_available, deadlock_detected.
func inTheWay(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "55P03" || pgErr.Code == "40P01")
}

// step applies the first pending migration and returns it, or nil when there
// is none. The lock lasts as long as the transaction, so it also holds behind a
// pooler that lends connections by transaction, and what is pending is only
// known once it is held. Other migrations are waited for, sessions that use a table
// only for lockWait.
func step(ctx context.Context, conn *pgx.Conn, set []Migration) (*Migration, error) {
	var done *Migration
	err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		// Behind a pooler the connection may have limits of somebody else's.
		if _, err := tx.Exec(ctx, `select set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)`); err != nil {
			return fmt.Errorf("set timeouts: %w", err)
		}
		if _, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1)`, lockKey); err != nil {
			return fmt.Errorf("wait for other migrations: %w", err)
		}
		status, err := check(ctx, tx, set)
		if err != nil {
			return err
		}
		if err := status.Err(); err != nil {
			return err
		}
		if len(status.Pending) == 0 {
			return nil
		}
		if _, err := tx.Exec(ctx, `select set_config('lock_timeout', $1, true)`, fmt.Sprint(lockWait.Milliseconds())); err != nil {
			return fmt.Errorf("set lock_timeout: %w", err)
		}
		done = &status.Pending[0]
		return run(ctx, tx, *done)
	})
	return done, err
}

// run executes a file, many statements in one request, and records it.
func run(ctx context.Context, tx pgx.Tx, m Migration) error {
	if _, err := tx.Exec(ctx, createTable); err != nil {
		return fmt.Errorf("create schema_migration: %w", err)
	}
	if _, err := tx.Exec(ctx, m.sql); err != nil {
		return fmt.Errorf("%s.sql%s: %w", m, line(m.sql, err), err)
	}
	_, err := tx.Exec(ctx,
		`insert into schema_migration (version, name, checksum, oldest) values ($1, $2, $3, $4)`,
		m.Version, m.Name, m.Checksum, m.Oldest)
	if err != nil {
		return fmt.Errorf("record %s: %w", m, err)
	}
	return nil
}

// line says where in the file the server found the error, as ":12".
func line(sql string, err error) string {
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) || pgErr.Position < 1 {
		return ""
	}
	before := []rune(sql) // the position counts characters
	if int(pgErr.Position) <= len(before) {
		before = before[:pgErr.Position-1]
	}
	return fmt.Sprintf(":%d", strings.Count(string(before), "\n")+1)
}

// querier is a connection or a transaction.
type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func check(ctx context.Context, db querier, set []Migration) (Status, error) {
	applied, err := readApplied(ctx, db)
	if err != nil {
		return Status{}, fmt.Errorf("read schema_migration: %w", err)
	}
	return compare(set, applied), nil
}

func readApplied(ctx context.Context, db querier) ([]Applied, error) {
	var exists bool
	err := db.QueryRow(ctx, `select to_regclass('schema_migration') is not null`).Scan(&exists)
	if err != nil || !exists {
		return nil, err
	}
	rows, err := db.Query(ctx, `select version, name, checksum, applied_at, oldest from schema_migration order by version`)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowToStructByPos[Applied])
}

func compare(set []Migration, applied []Applied) Status {
	status := Status{Applied: applied}
	have := make(map[int]Applied, len(applied))
	for _, row := range applied {
		have[row.Version] = row
	}
	for _, m := range set {
		status.newest = max(status.newest, m.Version)
		row, ok := have[m.Version]
		switch {
		case !ok:
			status.Pending = append(status.Pending, m)
		case row.Checksum != m.Checksum || row.Name != m.Name:
			status.Changed = append(status.Changed, row)
		}
		delete(have, m.Version)
	}
	for _, row := range applied {
		if _, unknown := have[row.Version]; unknown {
			status.Unknown = append(status.Unknown, row)
		}
	}
	return status
}
