package policy

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/auth"
	"postern/internal/units"
	"postern/relay/smtp"
)

// Exceeded is a windowed limit that a message would go over.
type Exceeded struct {
	Limit   auth.Limit
	Used    int64     // in the window, without the message
	Amount  int64     // what the message would add
	RetryAt time.Time // when it fits if nothing else is sent; zero if it never does
}

// OverLimit refuses the message, with what the person and the program that sent it
// can do: the moment is in RFC 3339 and in words.
func OverLimit(e Exceeded, now time.Time) Verdict {
	limit := limitText(e.Limit)
	text := ""
	switch {
	case e.RetryAt.IsZero() && e.Limit.Max == 0:
		text = limit + ": nothing may be sent; ask the administrator"
	case e.RetryAt.IsZero():
		text = fmt.Sprintf("%s can never hold this message of %d; %s, or ask the administrator", limit, e.Amount, smaller(e.Limit.Kind))
	default:
		// Up to the next second, so that who waits as long does not come early.
		at := e.RetryAt.UTC().Add(time.Second - 1).Truncate(time.Second)
		text = fmt.Sprintf("%s reached (used %d); try again after %s (in %s)", limit, e.Used, at.Format(time.RFC3339), wait(at.Sub(now)))
	}
	return refuse("limit "+string(e.Limit.Kind)+" "+FormatLimit(e.Limit)+" "+scope(e.Limit), smtp.Temporary(452, 7, 1, text))
}

// limitText is a limit over time for people: "Limit of 100 messages in 1m".
func limitText(l auth.Limit) string {
	what := string(l.Kind)
	if l.Kind == auth.LimitBytes {
		what = "octets"
	}
	if l.Max == 1 {
		what = strings.TrimSuffix(what, "s")
	}
	return fmt.Sprintf("Limit of %d %s in %s", l.Max, what, units.FormatSpan(l.Window))
}

// tooMany is why a message may have no more recipients: l is a limit over time, in
// whose window the others do not fit either, so that another message at once is no help.
func tooMany(l auth.Limit) string {
	return fmt.Sprintf("%s: a message can have no more, and the others must wait; send them %s after these, not together", limitText(l), wait(l.Window))
}

// Messages refuses a user whose messages are limited to none.
func Messages(id auth.Identity, now time.Time) Verdict {
	for _, l := range id.Limits {
		if l.Kind == auth.LimitMessages && l.Max == 0 {
			return OverLimit(Exceeded{Limit: l, Amount: 1}, now)
		}
	}
	return allow("messages")
}

func scope(l auth.Limit) string {
	if byCredential(l) {
		return "credential"
	}
	return "user"
}

func smaller(kind auth.LimitKind) string {
	switch kind {
	case auth.LimitRecipients:
		return "send it to fewer recipients at a time"
	case auth.LimitBytes:
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
