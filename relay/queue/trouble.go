package queue

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/panics"
	"postern/relay/smtp"
)

var (
	// errNotReplicated says that the commit came back with the warning that the wait
	// for the synchronous standby was given up: durable here, perhaps not there.
	errNotReplicated = errors.New("commit was not confirmed by the synchronous standby")
	// errEpochLost says that the row of our epoch is gone or reaped.
	errEpochLost = errors.New("this node's epoch is not valid")
	errClosed    = errors.New("the queue is closing")
)

// Trouble is what a client hears about err while its message is accepted. It is
// always 4yz: trouble of ours is no verdict about the message.
func Trouble(err error) smtp.Reply {
	var over *OverLimit
	if errors.As(err, &over) {
		return smtp.Temporary(452, 7, 1, "A sending limit is reached, try again later") // the policy has better words
	}
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		if errors.Is(err, ErrFull) {
			return storageFull
		}
		if errors.Is(err, errClosed) {
			return smtp.Temporary(421, 3, 2, "Service is shutting down, try again later")
		}
		return smtp.Temporary(451, 3, 0, "Message storage is unavailable, try again later")
	}
	switch {
	case pg.Code == "53300", pg.Code == "55P03", pg.Code == "57014":
		return smtp.Temporary(451, 3, 2, "Message storage is busy, try again later")
	case pg.Code == "54000", strings.HasPrefix(pg.Code, "53"):
		return storageFull
	}
	return smtp.Temporary(451, 3, 0, "Message storage is unavailable, try again later")
}

var storageFull = smtp.Temporary(452, 3, 1, "Message storage is full, try again later")

// certainty says what an error of a transaction tells about its commit.
type certainty int

const (
	notSent   certainty = iota // the server never saw it
	rejected                   // the server said that it is undone
	uncertain                  // it may be committed
)

// connectError is a connection that could not be made.
type connectError struct{ err error }

func (e *connectError) Error() string { return "connect: " + e.err.Error() }
func (e *connectError) Unwrap() error { return e.err }

// unsentError is trouble before the first octet was written: with an argument that cannot
// be encoded, as in a query mode that does not know the types of parameters.
type unsentError struct{ err error }

func (e *unsentError) Error() string { return e.err.Error() }
func (e *unsentError) Unwrap() error { return e.err }

// bodyError is a body that could not be read: trouble of one message alone.
type bodyError struct{ err error }

func (e *bodyError) Error() string { return e.err.Error() }
func (e *bodyError) Unwrap() error { return e.err }

// certaintyOf judges by the rule "in doubt, uncertain". FATAL is in doubt: it may
// come while a commit waits for its standby. So are the cancellations, for the same
// reason, and the codes by which a server or a proxy says that it does not know.
func certaintyOf(err error) certainty {
	var body *bodyError
	if errors.Is(err, pgx.ErrTxCommitRollback) || errors.As(err, &body) {
		return rejected
	}
	var connect *connectError
	var unsent *unsentError
	if errors.As(err, &connect) || errors.As(err, &unsent) || errors.Is(err, errEpochLost) {
		return notSent
	}
	if errors.Is(err, errNotReplicated) {
		return uncertain
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		if pg.SeverityUnlocalized != "ERROR" || pg.Code == "57014" || pg.Code == "40003" || strings.HasPrefix(pg.Code, "08") {
			return uncertain
		}
		return rejected
	}
	// pgx calls it safe to retry on a closed connection, also when it was closed while
	// the answer to a COMMIT was awaited.
	if pgconn.SafeToRetry(err) && !errors.Is(err, pgconn.ErrConnClosed) {
		return notSent
	}
	return uncertain
}

// isTaken reports that a message's own id is in the table already: an earlier try has
// been committed, whatever was thought of it. Ids are random: it is no other message's.
func isTaken(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "23505" && pg.ConstraintName == "message_pkey"
}

// isLocked reports a lock that was waited for too long.
func isLocked(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.Code == "55P03"
}

// class is the SQLSTATE class of err, "" when the server did not say one.
func class(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) && len(pg.Code) == 5 {
		return pg.Code[:2]
	}
	return ""
}

// ofTheRow reports trouble with what a statement was given or met, not with the server: the
// neighbours in its group need not share it. XX001 and XX002 are pages of a table or an index
// that are damaged.
func ofTheRow(err error) bool {
	var body *bodyError
	var pg *pgconn.PgError
	var panicked *panics.Error
	switch c := class(err); {
	case c == "22", c == "23", errors.As(err, &body), errors.As(err, &panicked):
		return true
	}
	return errors.As(err, &pg) && (pg.Code == "XX001" || pg.Code == "XX002")
}

// worthAnother reports a conflict that a second try may not meet.
func worthAnother(err error) bool { return class(err) == "40" }

// poisoned reports that the connection must not be used again although the server
// answered: it is not, or is no longer, a server that writes.
func poisoned(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && (pg.Code == "25006" || pg.SeverityUnlocalized != "ERROR")
}

func refusal(err error) *Error {
	if errors.Is(err, context.Canceled) {
		err = errClosed
	}
	return &Error{Reply: Trouble(err), Err: err}
}
