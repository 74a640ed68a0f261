// Package policy answers "what may you do?" with pure verdicts: which envelope
// senders a user may use, how large a message and how many recipients. It reads
// no clock and no database.
package policy

import (
	"postern/auth"
	"postern/relay/smtp"
)

// Verdict is a decision with the rule that made it. Reply is set when it refuses.
type Verdict struct {
	Allowed bool
	Rule    string // "sender *@example.com", for logs, trace and explain
	Reply   smtp.Reply
}

// Sender judges the envelope sender. The null path is allowed to nobody yet.
func Sender(id auth.Identity, from smtp.Address) Verdict { panic("not yet") }
