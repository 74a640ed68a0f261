package pg

import (
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/panics"
)

// ErrNotReplicated says that the commit came back with the warning that the wait
// for the synchronous standby was given up: durable here, perhaps not there.
var ErrNotReplicated = errors.New("commit was not confirmed by the synchronous standby")

// Certainty says what an error of a transaction tells about its commit.
type Certainty int

const (
	NotSent   Certainty = iota // the server never saw it
	Rejected                   // the server said that it is undone
	Uncertain                  // it may be committed
)

// ConnectError is a connection that could not be made.
type ConnectError struct{ Err error }

func (e *ConnectError) Error() string { return "connect: " + e.Err.Error() }
func (e *ConnectError) Unwrap() error { return e.Err }

// UnsentError is trouble before the first octet was written: with an argument that cannot
// be encoded, as in a query mode that does not know the types of parameters.
type UnsentError struct{ Err error }

func (e *UnsentError) Error() string { return e.Err.Error() }
func (e *UnsentError) Unwrap() error { return e.Err }

// RowError is trouble with what one row was to be made of, as with a body that cannot be
// read: the others of its group need not share it.
type RowError struct{ Err error }

func (e *RowError) Error() string { return e.Err.Error() }
func (e *RowError) Unwrap() error { return e.Err }

// CertaintyOf judges by the rule "in doubt, uncertain". FATAL is in doubt: it may
// come while a commit waits for its standby. So are the cancellations, for the same
// reason, and the codes by which a server or a proxy says that it does not know.
func CertaintyOf(err error) Certainty {
	var row *RowError
	if errors.Is(err, pgx.ErrTxCommitRollback) || errors.As(err, &row) {
		return Rejected
	}
	var connect *ConnectError
	var unsent *UnsentError
	if errors.As(err, &connect) || errors.As(err, &unsent) {
		return NotSent
	}
	if errors.Is(err, ErrNotReplicated) {
		return Uncertain
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		if pg.SeverityUnlocalized != "ERROR" || pg.Code == "57014" || pg.Code == "40003" || strings.HasPrefix(pg.Code, "08") {
			return Uncertain
		}
		return Rejected
	}
	// pgx calls it safe to retry on a closed connection, also when it was closed while
	// the answer to a COMMIT was awaited.
	if pgconn.SafeToRetry(err) && !errors.Is(err, pgconn.ErrConnClosed) {
		return NotSent
	}
	return Uncertain
}

// Code is the SQLSTATE of err, "" when the server did not say one.
func Code(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// Class is the class of the SQLSTATE of err, "" when the server did not say one.
func Class(err error) string {
	if code := Code(err); len(code) == 5 {
		return code[:2]
	}
	return ""
}

// OfTheRow reports trouble with what a statement was given or met, not with the server: the
// neighbours in its group need not share it. XX001 and XX002 are pages of a table or an index
// that are damaged.
func OfTheRow(err error) bool {
	var row *RowError
	var panicked *panics.Error
	class, code := Class(err), Code(err)
	return class == "22" || class == "23" || code == "XX001" || code == "XX002" || errors.As(err, &row) || errors.As(err, &panicked)
}

// poisoned reports that the connection must not be used again although the server
// answered: it is not, or is no longer, a server that writes.
func poisoned(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "25006" || pg.SeverityUnlocalized != "ERROR")
}

// IsDown reports trouble that is the server's and not the statement's.
func IsDown(err error) bool {
	if OfTheRow(err) {
		return false
	}
	var connect *ConnectError
	if errors.As(err, &connect) {
		return true
	}
	switch Class(err) {
	case "", "08", "25", "3D", "42", "53", "57", "58", "XX":
		return true
	}
	return false
}
