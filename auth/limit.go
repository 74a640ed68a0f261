package auth

import "time"

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

// Tightest is the lowest limit of a kind that has no window; ok is false when there
// is none.
func (id Identity) Tightest(kind LimitKind) (tightest Limit, ok bool) {
	for _, l := range id.Limits {
		if l.Kind == kind && (!ok || l.Max < tightest.Max) {
			tightest, ok = l, true
		}
	}
	return tightest, ok
}
