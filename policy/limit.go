package policy

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"postern/auth"
	"postern/internal/units"
)

const day = 24 * time.Hour

// ParseLimit reads limits of a kind as they are written:
//
//	messages, recipients      100/m,1000/d,20000/30d
//	bytes                     1GB/d,200MB/h
//	size                      25MB
//	recipients per message    100
//	sessions                  10
//
// Windows are s, m, h or d with a count before them, up to 366d; octets are plain or
// in KB, MB, GB, KiB, MiB or GiB. The limits have no Source. The error says what to write.
func ParseLimit(kind auth.LimitKind, s string) ([]auth.Limit, error) {
	var limits []auth.Limit
	for part := range strings.SplitSeq(s, ",") {
		l, err := parseOne(kind, strings.TrimSpace(part))
		if err != nil {
			return nil, err
		}
		for _, other := range limits {
			if other.Window == l.Window {
				return nil, fmt.Errorf("limit %q: give one limit for each window; to write: %s", s, example(kind))
			}
		}
		limits = append(limits, l)
	}
	return limits, nil
}

func example(kind auth.LimitKind) string {
	switch kind {
	case auth.LimitBytes:
		return "1GB/d or 200MB/h,1GB/d (KB MB GB KiB MiB GiB; s m h d)"
	case auth.LimitSize:
		return "25MB (KB MB GB KiB MiB GiB)"
	case auth.LimitMessages, auth.LimitRecipients:
		return "100/m or 100/m,1000/d,20000/30d (s m h d)"
	}
	return "a number, such as 100"
}

func parseOne(kind auth.LimitKind, s string) (auth.Limit, error) {
	fail := func(what string) (auth.Limit, error) {
		return auth.Limit{}, fmt.Errorf("limit %q: %s; write %s", s, what, example(kind))
	}
	l := auth.Limit{Kind: kind}
	amount, window, ok := strings.Cut(s, "/")
	switch {
	case kind.Windowed() && !ok:
		return fail("it needs a window")
	case !kind.Windowed() && ok:
		return fail("it has no window")
	}
	var err error
	if l.Max, err = parseAmount(amount, kind == auth.LimitBytes || kind == auth.LimitSize); err != nil {
		return fail(err.Error())
	}
	if ok {
		if l.Window, err = parseWindow(window); err != nil {
			return fail(err.Error())
		}
	}
	return l, nil
}

var (
	errAmount = errors.New("the amount is not a number")
	errSize   = errors.New("the amount is not a number of octets")
	errLarge  = errors.New("the amount is too large")
	errWindow = errors.New("the window is not from 1s to 366d")
)

func parseAmount(s string, octets bool) (int64, error) {
	parse, wrong := units.ParseCount, errAmount
	if octets {
		parse, wrong = units.ParseOctets, errSize
	}
	n, err := parse(s)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, errLarge
	case err != nil:
		return 0, wrong
	}
	return n, nil
}

// parseWindow reads a unit with a whole number of them before it, or one of it.
func parseWindow(s string) (time.Duration, error) {
	switch count := strings.TrimRight(s, "smhd"); {
	case len(s) != len(count)+1 || strings.Trim(count, "0123456789") != "":
		return 0, errWindow
	case count == "":
		s = "1" + s
	}
	w, err := units.ParseSpan(s)
	if err != nil || w < time.Second || w > auth.MaxWindow {
		return 0, errWindow
	}
	return w, nil
}

// FormatLimit writes a limit as ParseLimit reads it: "100/m", "1GB/d", "25MB".
func FormatLimit(l auth.Limit) string {
	if !l.Kind.Windowed() {
		return formatAmount(l)
	}
	window := units.FormatSpan(l.Window)
	if unit, one := strings.CutPrefix(window, "1"); one && len(unit) == 1 {
		window = unit
	}
	return formatAmount(l) + "/" + window
}

func formatAmount(l auth.Limit) string {
	if l.Kind == auth.LimitBytes || l.Kind == auth.LimitSize {
		return units.FormatOctets(l.Max)
	}
	return strconv.FormatInt(l.Max, 10)
}

// Windows are the limits that each message of id counts against: for each scope, kind and
// window the tightest. Default and user limits have one scope, all that the user
// sends; the other is what comes by the credential (auth.FromCredential). Of two as tight
// it is the user's own.
func Windows(id auth.Identity) []auth.Limit {
	var tightest []auth.Limit
next:
	for _, l := range id.Limits {
		if !l.Kind.Windowed() {
			continue
		}
		for i := range tightest {
			if t := &tightest[i]; t.Kind == l.Kind && t.Window == l.Window && byCredential(*t) == byCredential(l) {
				if tighter(l, *t) {
					*t = l
				}
				continue next
			}
		}
		tightest = append(tightest, l)
	}
	return tightest
}

// tighter reports that l allows less than other, or the same and was set more closely.
func tighter(l, other auth.Limit) bool {
	closeness := map[auth.LimitSource]int{auth.FromUser: 1, auth.FromCredential: 2}
	return cmp.Or(cmp.Compare(l.Max, other.Max), cmp.Compare(closeness[other.Source], closeness[l.Source])) < 0
}

func byCredential(l auth.Limit) bool { return l.Source == auth.FromCredential }

// smallest is the lowest of the limits of one message that id is under: those of
// the kind, and those of the windowed kind, in whose window a message cannot fit that
// is over it alone.
func smallest(id auth.Identity, kind, windowed auth.LimitKind) (l auth.Limit, ok bool) {
	for _, other := range id.Limits {
		if other.Kind != kind && other.Kind != windowed {
			continue
		}
		order := cmp.Or(cmp.Compare(other.Max, l.Max), cmp.Compare(other.Window, l.Window))
		if !ok || order < 0 || order == 0 && tighter(other, l) {
			l, ok = other, true
		}
	}
	return l, ok
}

// Binds reports whether l, a limit of id without a window, is the one of its kind that
// a message or a session meets first, of two as tight the one set more closely. Sessions of the user and by the credential are
// counted apart.
func Binds(id auth.Identity, l auth.Limit) bool {
	for _, other := range id.Limits {
		apart := l.Kind == auth.LimitSessions && (other.Source == auth.FromCredential) != (l.Source == auth.FromCredential)
		if other.Kind == l.Kind && !apart && tighter(other, l) {
			return false
		}
	}
	return true
}
