// Package auth answers "who are you?": users, credentials and limits in Postgres,
// password hashing, the SASL exchanges, and the login, which auth/throttle slows down
// after failures. auth/audit has what admins did, docs/accounts.md what all this promises
// to an admin. It knows nothing of mail: holds are the queue's, and what a limit means is
// policy/quota's.
//
// A wrong name, a wrong password, a disabled user and an expired or revoked credential
// take one path, the same time and give the same ErrCredentials. Trouble with the
// database is ErrUnavailable, never an answer about the password, and counts as no failure.
//
// A change acts on every node that has a Watch within a second, and without one within
// five: a node trusts what it has cached of a user only while the user's version is the same.
package auth

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"postern/policy/quota"
)

var (
	// ErrCredentials is every refusal of a name and password: 535 5.7.8.
	ErrCredentials = errors.New("authentication credentials invalid")
	// ErrBusy says that too many checks wait already: 454 4.7.0.
	ErrBusy = errors.New("authentication is busy")
	// ErrUnavailable says that the check could not be made: 454 4.7.0.
	ErrUnavailable = errors.New("authentication is unavailable")
	// ErrMalformed is a SASL message that breaks its mechanism's syntax: 501 5.5.2.
	ErrMalformed = errors.New("malformed authentication exchange")
)

// Identity is an authenticated user.
type Identity struct {
	UserID       int64
	CredentialID int64
	Name         string             // canonical
	Senders      []string           // patterns of addresses this user may send as
	Resend       []string           // those of Senders by which the user may also resend others' mail
	Expires      time.Time          // of the credential; zero: never
	Limits       []quota.Limit      // all that are set for this user, by whichever source
	Recipients   []RecipientPattern // whom this user may write to, or not, by this credential; none: anybody
	Suppressed   Suppressed         // what mail by this credential does with a suppressed recipient; "": RefuseSuppressed
	// NewNetwork says that the client's /24 or /48 is new to the user: a day ago, no
	// login had come from it for 30 days.
	NewNetwork bool
	// Duplicates is how long copies of a message are recognised, 0 for not at all; nil: as the
	// configuration says.
	Duplicates *time.Duration
}

// Domain is the domain of the user's name, "" when it is a word.
func (id Identity) Domain() string {
	_, domain, _ := strings.Cut(id.Name, "@")
	return domain
}

// Peer is the client that wants to log in.
type Peer struct {
	Addr netip.Addr
	TLS  string // the session's TLS facts, "" in clear; they are kept as the last use
}

// Verifier checks a name and password that came from peer. Errors are
// ErrCredentials, ErrBusy or ErrUnavailable, possibly wrapped.
type Verifier interface {
	Verify(ctx context.Context, name, password string, peer Peer) (Identity, error)
}
