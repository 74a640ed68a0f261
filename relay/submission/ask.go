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
func Charges(id auth.Identity) []queue.Charge {
	limits := policy.Windows(id)
	if len(limits) == 0 {
		return nil
	}
	charges := make([]queue.Charge, len(limits))
	for i, l := range limits {
		charges[i] = ChargeOf(id, l)
	}
	return charges
}

// chargeKinds are the limits that the queue counts.
var chargeKinds = map[auth.LimitKind]queue.ChargeKind{
	auth.LimitMessages:   queue.ChargeMessages,
	auth.LimitRecipients: queue.ChargeRecipients,
	auth.LimitBytes:      queue.ChargeBytes,
}

// ChargeOf is a limit of id over time as the queue counts it.
func ChargeOf(id auth.Identity, l auth.Limit) queue.Charge {
	c := queue.Charge{Scope: queue.ChargeUser, Subject: id.UserID, Kind: chargeKinds[l.Kind], Window: l.Window, Max: l.Max}
	if l.Source == auth.FromCredential {
		c.Scope, c.Subject = queue.ChargeCredential, id.CredentialID
	}
	return c
}

// LimitOf is the limit of a charge. Whether a user's was set for it or for all users,
// the queue does not know.
func LimitOf(c queue.Charge) auth.Limit {
	l := auth.Limit{Window: c.Window, Max: c.Max, Source: auth.FromUser}
	if c.Scope == queue.ChargeCredential {
		l.Source = auth.FromCredential
	}
	for kind, counted := range chargeKinds {
		if counted == c.Kind {
			l.Kind = kind
		}
	}
	return l
}

// OverLimit is what a client is told when the queue refuses its message for a limit.
func OverLimit(over *queue.OverLimit, now time.Time) policy.Verdict {
	return policy.OverLimit(exceeded(over), now)
}
