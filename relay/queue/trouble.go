package queue

import (
	"context"
	"errors"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"postern/internal/pg"
	"postern/policy/quota"
	"postern/relay/queue/insert"
	"postern/relay/queue/reserve"
	"postern/relay/smtp"
)

var (
	// errEpochLost says that the row of our epoch is gone or reaped: nothing was written.
	errEpochLost error = &pg.UnsentError{Err: errors.New("this node's epoch is not valid")}
	errClosed          = errors.New("the queue is closing")
)

// troubleReply is the reply to a client whose message could not be accepted because of err. It is
// 4yz unless the client is at fault: our trouble says nothing about the message.
func troubleReply(err error) smtp.Reply {
	if other := (*insert.OtherContent)(nil); errors.As(err, &other) {
		return smtp.Permanent(554, 6, 0, "The idempotency key was used for other content, queued as "+other.First.String()+"; use a new key for each message")
	}
	var over *quota.Over
	if errors.As(err, &over) {
		return smtp.Temporary(452, 7, 1, "A sending limit is reached, try again later") // the policy has a better text
	}
	code := pg.Code(err)
	if code == "" {
		if errors.Is(err, reserve.ErrFull) {
			return storageFull
		}
		if errors.Is(err, errClosed) {
			return smtp.Temporary(421, 3, 2, "Service is shutting down, try again later")
		}
		return smtp.Temporary(451, 3, 0, "Message storage is unavailable, try again later")
	}
	switch {
	case code == "53300", code == "55P03", code == "57014":
		return smtp.Temporary(451, 3, 2, "Message storage is busy, try again later")
	case code == "54000", strings.HasPrefix(code, "53"):
		return storageFull
	}
	return smtp.Temporary(451, 3, 0, "Message storage is unavailable, try again later")
}

var storageFull = smtp.Temporary(452, 3, 1, "Message storage is full, try again later")

// isTaken reports that a message's own id is in the table already: an earlier try was
// committed after all. Ids are random, so it cannot be another message's.
func isTaken(err error) bool { return isIn(err, "message_pkey") }

// hasCopy reports that a key of the group is in the table: some message may be a duplicate.
func hasCopy(err error) bool { return isIn(err, "duplicate_pkey") }

// isIn reports that a row that was to be inserted is in the table of a primary key already.
func isIn(err error, key string) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && said.Code == "23505" && said.ConstraintName == key
}

// isLocked reports a lock that was waited for too long.
func isLocked(err error) bool { return pg.Code(err) == "55P03" }

// ofKey reports that such a lock was of a duplicate's key, and not of a limit.
func ofKey(err error) bool {
	var said *pgconn.PgError
	return errors.As(err, &said) && (strings.Contains(said.Where, "duplicate_pkey") ||
		strings.Contains(said.Where, "admit(") && !strings.Contains(said.Where, "charge_usage("))
}

// isBlocked reports that such a lock was of a table or an index, which somebody else changes, and not
// of a row.
func isBlocked(err error) bool {
	var said *pgconn.PgError
	return isLocked(err) && !ofKey(err) && errors.As(err, &said) && !strings.Contains(said.Where, "charge_usage(")
}

// worthAnother reports a conflict that a second try may not meet.
func worthAnother(err error) bool { return pg.Class(err) == "40" }

func refusal(err error) *smtp.Error {
	if errors.Is(err, context.Canceled) {
		err = errClosed
	}
	return &smtp.Error{Reply: troubleReply(err), Err: err}
}
