package auth

import (
	"errors"
	"fmt"
	"time"
)

// ErrLimit is a limit that cannot be one.
var ErrLimit = errors.New("not a valid limit")

// LimitKind is what a limit counts.
type LimitKind string

const (
	LimitMessages             LimitKind = "messages"   // in a window
	LimitRecipients           LimitKind = "recipients" // in a window
	LimitBytes                LimitKind = "bytes"      // octets in a window
	LimitSize                 LimitKind = "size"       // octets of one message
	LimitRecipientsPerMessage LimitKind = "recipients_per_message"
	LimitSessions             LimitKind = "sessions" // at once, over all nodes
)

// Windowed reports whether limits of this kind have a Window.
func (k LimitKind) Windowed() bool {
	return k == LimitMessages || k == LimitRecipients || k == LimitBytes
}

// MaxWindow is the longest window of a limit: a leap year.
const MaxWindow = 366 * 24 * time.Hour

func (k LimitKind) valid() bool {
	switch k {
	case LimitMessages, LimitRecipients, LimitBytes, LimitSize, LimitRecipientsPerMessage, LimitSessions:
		return true
	}
	return false
}

// LimitSource is where a limit was set, and so what it counts: "default" and "user"
// limits count all that the user sends, "credential" ones what came by the credential.
type LimitSource string

const (
	FromDefault    LimitSource = "default"
	FromUser       LimitSource = "user"
	FromCredential LimitSource = "credential"
)

// Limit is one limit that an Identity is under.
type Limit struct {
	Kind   LimitKind
	Window time.Duration // whole seconds; 0 unless Kind.Windowed
	Max    int64         // octets, messages, recipients or sessions; 0 allows none
	Source LimitSource
}

// check says what a limit is not.
func (l Limit) check() error {
	switch {
	case !l.Kind.valid():
		return fmt.Errorf("%w: nothing is called %q", ErrLimit, l.Kind)
	case l.Max < 0:
		return fmt.Errorf("%w: %s below 0", ErrLimit, l.Kind)
	case !l.Kind.Windowed() && l.Window != 0:
		return fmt.Errorf("%w: %s has no window", ErrLimit, l.Kind)
	case l.Kind.Windowed() && (l.Window < time.Second || l.Window > MaxWindow || l.Window%time.Second != 0):
		return fmt.Errorf("%w: %s needs a window of whole seconds, up to 366 days", ErrLimit, l.Kind)
	}
	return nil
}

// String is the limit in words for the audit: "messages 100/3600s", "size 5000000".
func (l Limit) String() string {
	if !l.Kind.Windowed() {
		return fmt.Sprintf("%s %d", l.Kind, l.Max)
	}
	return fmt.Sprintf("%s %d/%ds", l.Kind, l.Max, l.Window/time.Second)
}
