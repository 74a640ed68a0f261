// Package policy answers "what may you do?" with pure verdicts: as whom a user may
// send, how large a message, to how many recipients, and how much over time. Verdicts
// read no clock and no database: relay/queue counts the use of a limit.
// Sessions is the exception: it counts concurrent sessions, in the table live_session.
//
// "Never" is a 5yz reply, "later" a 4yz one. Each reply says what was refused and
// what to do about it, in words that the person at the mail client can act on.
package policy

import (
	"fmt"
	"math"

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

// Size judges the size of a message, in octets: the one declared at MAIL, 0 when none
// was, or the true one. serverMax is the server's own limit, 0 for none.
func Size(id auth.Identity, size, serverMax int64) Verdict {
	limit := serverLimit(serverMax)
	rule := "size server"
	if l, ok := smallest(id, auth.LimitSize, auth.LimitBytes); ok && l.Max <= limit {
		limit, rule = l.Max, ruleOf("size", l)
	}
	if size <= limit && limit > 0 {
		return allow(rule)
	}
	// RFC 1870 section 6.1 and RFC 3463: the message is too big for the system.
	if limit == 0 {
		return refuse(rule, smtp.Permanent(552, 3, 4, "You may send no messages; ask the administrator"))
	}
	return refuse(rule, smtp.Permanent(552, 3, 4,
		fmt.Sprintf("The message has %d octets, you may send at most %d", size, limit)))
}

// MaxSize is the largest message that id may send: 0 for none at all, math.MaxInt64
// for any.
func MaxSize(id auth.Identity, serverMax int64) int64 {
	limit := serverLimit(serverMax)
	if l, ok := smallest(id, auth.LimitSize, auth.LimitBytes); ok {
		limit = min(limit, l.Max)
	}
	return limit
}

// Recipients judges whether a message may have n recipients. serverMax is the
// server's own limit, 0 for none. Refusing is for now, not for ever: clients send the
// rest in another transaction (RFC 5321 section 4.5.3.1.10), which a limit over time
// lets through later only.
func Recipients(id auth.Identity, n, serverMax int) Verdict {
	limit := serverLimit(int64(serverMax))
	rule, overTime := "recipients server", ""
	if l, ok := smallest(id, auth.LimitRecipientsPerMessage, auth.LimitRecipients); ok && l.Max < limit {
		limit, rule = l.Max, ruleOf("recipients", l)
		if l.Kind.Windowed() {
			overTime = tooMany(l)
		}
	}
	if int64(n) <= limit {
		return allow(rule)
	}
	switch {
	case limit == 0:
		return refuse(rule, smtp.Temporary(452, 5, 3, "You may send to no recipients; ask the administrator"))
	case overTime != "":
		return refuse(rule, smtp.Temporary(452, 5, 3, overTime))
	}
	return refuse(rule, smtp.Temporary(452, 5, 3,
		fmt.Sprintf("Too many recipients: at most %d for one message, send the others in another", limit)))
}

// serverLimit makes a limit of the server one that can be compared.
func serverLimit(most int64) int64 {
	if most <= 0 {
		return math.MaxInt64
	}
	return most
}

// ruleOf names a limit of one message: "size user", or "size 1GB/d user" when it
// is one over time.
func ruleOf(what string, l auth.Limit) string {
	if l.Kind.Windowed() {
		return what + " " + FormatLimit(l) + " " + string(l.Source)
	}
	return what + " " + string(l.Source)
}
