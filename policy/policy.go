// Package policy answers "what may you do?" with pure verdicts: which envelope
// senders a user may use, how large a message and how many recipients. It reads
// no clock and no database.
//
// "Never" is a 5yz reply, "later" a 4yz one. Each reply says what was refused and
// what to do about it, in words that the person at the mail client can act on.
package policy

import (
	"fmt"

	"postern/auth"
	"postern/relay/smtp"
)

// Verdict is a decision with the rule that made it. Reply is set when it refuses.
type Verdict struct {
	Allowed bool
	Rule    string // "sender *@example.com", for logs, trace and explain
	Reply   smtp.Reply
}

func allow(rule string) Verdict { return Verdict{Allowed: true, Rule: rule} }

func refuse(rule string, reply smtp.Reply) Verdict { return Verdict{Rule: rule, Reply: reply} }

// Size judges the size of a message, in octets: the one declared at MAIL or the
// true one. serverMax is the server's own limit, 0 for none.
func Size(id auth.Identity, size, serverMax int64) Verdict {
	limit, rule := MaxSize(id, serverMax), "size server"
	if l, ok := id.Tightest(auth.LimitSize); ok && limit == l.Max {
		rule = "size " + string(l.Source)
	}
	if limit <= 0 || size <= limit {
		return allow(rule)
	}
	// RFC 1870 section 6.1 and RFC 3463: the message is too big for the system.
	return refuse(rule, smtp.Permanent(552, 3, 4,
		fmt.Sprintf("The message has %d octets, you may send at most %d", size, limit)))
}

// MaxSize is the largest message that id may send, 0 for any.
func MaxSize(id auth.Identity, serverMax int64) int64 {
	if l, ok := id.Tightest(auth.LimitSize); ok && (serverMax <= 0 || l.Max < serverMax) {
		return l.Max
	}
	return serverMax
}

// Recipients judges whether a message may have n recipients. serverMax is the
// server's own limit, 0 for none. Refusing is for now, not for ever: clients send the
// rest in another transaction (RFC 5321 section 4.5.3.1.10).
func Recipients(id auth.Identity, n, serverMax int) Verdict {
	limit, rule := serverMax, "recipients server"
	if l, ok := id.Tightest(auth.LimitRecipientsPerMessage); ok && (limit <= 0 || l.Max < int64(limit)) {
		limit, rule = int(l.Max), "recipients "+string(l.Source)
	}
	if limit <= 0 || n <= limit {
		return allow(rule)
	}
	return refuse(rule, smtp.Temporary(452, 5, 3,
		fmt.Sprintf("Too many recipients: at most %d for one message, send the others in another", limit)))
}
