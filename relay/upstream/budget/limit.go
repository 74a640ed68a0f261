package budget

import (
	"context"
	"regexp"
	"slices"
	"strings"
	"time"

	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/policy/quota"
)

// Limit is one limit of a budget: of messages or recipients in a window, or of sessions.
type Limit struct {
	quota.Limit        // without Scope and Subject
	Zone        string // the window is a day there, from midnight on; "": it rolls
}

// none is the setting of an upstream that is to have no budget although its preset has one.
const none = "none"

// mostUnits is the largest limit, with which the database can still reckon.
const mostUnits = 1_000_000_000_000

const form = "a budget is written like 'messages 30/m, recipients 10000/d, sessions 3'; a day from midnight on like 10000/d@Europe/Berlin"

var zoneForm = regexp.MustCompile(`^[A-Za-z0-9_+-]+(/[A-Za-z0-9_+-]+)*$`)

// Parse reads a budget:
//
//	messages 30/m, 5000/d, recipients 10000/d@Europe/Berlin, sessions 3
//
// A word holds for the amounts after it; "" and none mean no limits. Only the
// database knows which zones exist. Errors: refusal.ErrInvalid.
func Parse(text string) (limits []Limit, err error) {
	if text == "" || text == none {
		return nil, nil
	}
	var kind quota.Kind
	for part := range strings.SplitSeq(text, ",") {
		word, amount, ok := strings.Cut(strings.TrimSpace(part), " ")
		if !ok {
			word, amount = string(kind), word
		}
		kind = quota.Kind(word)
		l, err := parseLimit(kind, strings.TrimSpace(amount))
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(limits, l.sameCount) {
			return nil, refusal.Invalid("budget %q: %s has two limits for one window", text, kind)
		}
		limits = append(limits, l)
	}
	return limits, nil
}

func parseLimit(kind quota.Kind, text string) (l Limit, err error) {
	if kind == "" {
		return l, refusal.Invalid("%q needs a word before it: messages, recipients or sessions; %s", text, form)
	}
	if kind != quota.Messages && kind != quota.Recipients && kind != quota.Sessions {
		return l, refusal.Invalid("%q is none of messages, recipients and sessions; %s", kind, form)
	}
	amount, zone, zoned := strings.Cut(text, "@")
	parsed, err := quota.Parse(kind, amount)
	switch {
	case err != nil:
		return l, refusal.Invalid("%v; %s", err, form)
	case parsed[0].Max < 1:
		return l, refusal.Invalid("%s 0 is not a limit: to make mail wait, use 'postern upstream pause'; %s", kind, form)
	case parsed[0].Max > mostUnits:
		return l, refusal.Invalid("%s %s: the amount is too large; %s", kind, text, form)
	case zoned && (parsed[0].Window != 24*time.Hour || !zoneForm.MatchString(zone)):
		return l, refusal.Invalid("%s: only a day (/d) begins at midnight in a zone; %s", text, form)
	}
	return Limit{parsed[0], zone}, nil
}

func (l Limit) sameCount(other Limit) bool {
	return l.Kind == other.Kind && l.Window == other.Window && l.Zone == other.Zone
}

// String writes a limit as Parse reads it.
func (l Limit) String() string {
	if l.Zone != "" {
		return l.Limit.String() + "@" + l.Zone
	}
	return l.Limit.String()
}

// Fits is how many recipients one message may have so that it fits into each limit at all; most
// where there is none.
func Fits(setting string, most int) int {
	limits, _ := Parse(setting) // what does not parse is no limit
	for _, l := range limits {
		if l.Kind == quota.Recipients {
			most = int(min(int64(most), l.Max))
		}
	}
	return most
}

// Check refuses a setting with a zone that the database does not know. Errors:
// refusal.ErrInvalid.
func Check(ctx context.Context, db pg.DB, setting string) error {
	limits, err := Parse(setting)
	for _, l := range limits {
		var known bool
		if l.Zone == "" {
			continue
		}
		if err := db.QueryRow(ctx, sqlZone, l.Zone).Scan(&known); err != nil {
			return err
		}
		if !known {
			return refusal.Invalid("the database knows no time zone %q; write it like Europe/Berlin", l.Zone)
		}
	}
	return err
}
