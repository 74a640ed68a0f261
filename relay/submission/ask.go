package submission

import (
	"time"

	"postern/auth"
	"postern/policy"
	"postern/relay/queue"
	"postern/relay/smtp"
)

// LoginRefused is what a client is told whose login is refused, whatever the reason.
func LoginRefused() smtp.Reply {
	return smtp.Permanent(535, 7, 8, "Authentication credentials invalid")
}

// Charges are the limits that each message of id counts against.
func Charges(id auth.Identity) []queue.Charge { return (&session{identity: &id}).charges() }

// OverLimit is what a client is told when the queue refuses its message for a limit.
func OverLimit(over *queue.OverLimit, now time.Time) policy.Verdict {
	return policy.OverLimit(exceeded(over), now)
}
