package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/auth"
	"postern/internal/units"
	"postern/policy/quota"
	"postern/relay/smtp"
)

const day = 24 * time.Hour

// OverLimit refuses a message or a session, with what the person and the program that
// sent it can do: the moment is in RFC 3339 and in words.
func OverLimit(e *quota.Over, now time.Time) Verdict {
	limit := limitText(e.Limit)
	text := ""
	switch {
	case e.Kind == quota.Sessions:
		return tooManySessions(e)
	case e.RetryAt.IsZero() && e.Max == 0:
		text = limit + ": nothing may be sent; ask the administrator"
	case e.RetryAt.IsZero():
		text = fmt.Sprintf("%s can never hold this message of %d; %s, or ask the administrator", limit, e.Amount, smaller(e.Kind))
	default:
		// Up to the next second, so that a client that waits this long is never early.
		at := e.RetryAt.UTC().Add(time.Second - 1).Truncate(time.Second)
		text = fmt.Sprintf("%s reached (used %d); try again after %s (in %s)", limit, e.Used, at.Format(time.RFC3339), wait(at.Sub(now)))
	}
	return refuse(ruleOf("limit "+string(e.Kind), e.Limit), smtp.Temporary(452, 7, 1, text))
}

// limitText is a limit over time for people: "Limit of 100 messages in 1m". That of a domain
// ends with "for all of example.com", for others may have used it.
func limitText(l quota.Limit) string {
	what := string(l.Kind)
	if l.Kind == quota.Bytes {
		what = "octets"
	}
	if l.Max == 1 {
		what = strings.TrimSuffix(what, "s")
	}
	text := fmt.Sprintf("Limit of %d %s in %s", l.Max, what, units.FormatSpan(l.Window))
	if l.Scope == quota.Domain {
		text += " for all of " + l.Subject
	}
	return text
}

// tooMany is why a message may have no more recipients: l is a limit over time, in
// whose window the others do not fit either, so that another message is no help now.
func tooMany(l quota.Limit) string {
	return fmt.Sprintf("%s: a message can have no more, and the others must wait; send them %s after these, not together", limitText(l), wait(l.Window))
}

// Messages refuses a user whose messages are limited to none.
func Messages(id auth.Identity, now time.Time) Verdict {
	for _, l := range id.Limits {
		if l.Kind == quota.Messages && l.Max == 0 {
			return OverLimit(&quota.Over{Limit: l, Amount: 1}, now)
		}
	}
	return allow("messages")
}

// OneMore judges one more session of id, of what is open.
func OneMore(id auth.Identity, used quota.Usage) Verdict {
	if over := used.OneMore(id.Limits); over != nil {
		return tooManySessions(over)
	}
	if l, ok := quota.Smallest(id.Limits, quota.Sessions, ""); ok {
		return allow(ruleOf(string(l.Kind), l))
	}
	return allow("")
}

func tooManySessions(e *quota.Over) Verdict {
	by := "for you"
	switch e.Scope {
	case quota.Credential:
		by = "by this credential"
	case quota.Domain:
		by = "for all of " + e.Subject
	}
	// RFC 4954 section 6 has 454 4.7.0 for what is no verdict about the password.
	return refuse(ruleOf(string(e.Kind), e.Limit), smtp.Temporary(454, 7, 0,
		fmt.Sprintf("Too many sessions %s: %d are open, at most %d are allowed; close one or try again later", by, e.Used, e.Max)))
}

func smaller(kind quota.Kind) string {
	switch kind {
	case quota.Recipients:
		return "send it to fewer recipients at a time"
	case quota.Bytes:
		return "make it smaller"
	}
	return "send less"
}

// wait writes a duration for people, in at most two units and not too short: "12 s",
// "3 h 20 min", "2 d".
func wait(d time.Duration) string {
	units := [...]struct {
		name string
		of   time.Duration
	}{{"d", day}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	d = max(d, time.Second)
	for i, u := range units {
		if d < u.of {
			continue
		}
		if i == len(units)-1 {
			return strconv.FormatInt(int64((d+u.of-1)/u.of), 10) + " " + u.name
		}
		below := units[i+1]
		major, minor := d/u.of, (d%u.of+below.of-1)/below.of
		if minor == u.of/below.of {
			major, minor = major+1, 0
		}
		text := fmt.Sprintf("%d %s", major, u.name)
		if minor > 0 {
			text += fmt.Sprintf(" %d %s", minor, below.name)
		}
		return text
	}
	return "1 s"
}
