package quota

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/units"
)

// ErrLimit is a limit that cannot be one.
var ErrLimit = errors.New("not a valid limit")

// Kind is what a limit counts.
type Kind string

const (
	Messages            Kind = "messages"   // in a window
	Recipients          Kind = "recipients" // in a window
	Bytes               Kind = "bytes"      // octets in a window
	Size                Kind = "size"       // octets of one message
	RecipientsOfMessage Kind = "recipients_per_message"
	Sessions            Kind = "sessions" // concurrent, across all nodes
)

// Kinds are all kinds, in the order in which they are shown.
func Kinds() []Kind {
	return []Kind{Messages, Recipients, Bytes, Size, RecipientsOfMessage, Sessions}
}

// Windowed reports whether limits of this kind have a Window.
func (k Kind) Windowed() bool { return k == Messages || k == Recipients || k == Bytes }

// Check returns ErrLimit for what is not a kind.
func (k Kind) Check() error {
	if !slices.Contains(Kinds(), k) {
		return fmt.Errorf("%w: nothing is called %q", ErrLimit, k)
	}
	return nil
}

// Name is the kind as flags and tables have it, such as recipients-per-message.
func (k Kind) Name() string { return strings.ReplaceAll(string(k), "_", "-") }

func (k Kind) octets() bool { return k == Bytes || k == Size }

// ofMessage reports that each message is judged by itself: nothing is counted.
func (k Kind) ofMessage() bool { return k == Size || k == RecipientsOfMessage }

// Scope is where a limit was set, and so what it counts: "default" and "user" limits count
// all that the user sends, "domain" ones all that the users of the domain send together,
// and "credential" ones what came by the credential.
type Scope string

const (
	Default    Scope = "default"
	Domain     Scope = "domain"
	User       Scope = "user"
	Credential Scope = "credential"
)

// closeness orders scopes: of two limits as tight, the one set more closely is named.
var closeness = map[Scope]int{Default: 1, Domain: 2, User: 3, Credential: 4}

// MaxWindow is the longest window of a limit: a leap year.
const MaxWindow = 366 * 24 * time.Hour

// Limit is one limit: at most Max of Kind in any Window, across all nodes.
type Limit struct {
	Kind    Kind
	Window  time.Duration // whole seconds; 0 unless Kind.Windowed
	Max     int64         // octets, messages, recipients or sessions; 0 allows none
	Scope   Scope
	Subject string // whose use counts: the id of the user or credential, or the domain; "" for a Default that is only set
}

// ID is a user's or a credential's id as the Subject of a limit.
func ID(id int64) string { return strconv.FormatInt(id, 10) }

// Check says why a limit cannot be one, by an ErrLimit.
func (l Limit) Check() error {
	if err := l.Kind.Check(); err != nil {
		return err
	}
	switch {
	case l.Max < 0:
		return fmt.Errorf("%w: %s below 0", ErrLimit, l.Kind)
	case !l.Kind.Windowed() && l.Window != 0:
		return fmt.Errorf("%w: %s has no window", ErrLimit, l.Kind)
	case l.Kind.Windowed() && (l.Window < time.Second || l.Window > MaxWindow || l.Window%time.Second != 0):
		return fmt.Errorf("%w: %s needs a window of whole seconds, up to 366 days", ErrLimit, l.Kind)
	}
	return nil
}

// Parse reads limits of a kind as they are written:
//
//	messages, recipients      100/m,1000/d,20000/30d
//	bytes                     1GB/d,200MB/h
//	size                      25MB
//	recipients per message    100
//	sessions                  10
//
// Windows are s, m, h or d with a count before them, up to 366d; octets are plain or
// in KB, MB, GB, KiB, MiB or GiB. The limits have no Scope. The error says what to write.
func Parse(kind Kind, s string) ([]Limit, error) {
	var limits []Limit
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

func example(kind Kind) string {
	switch kind {
	case Bytes:
		return "1GB/d or 200MB/h,1GB/d (KB MB GB KiB MiB GiB; s m h d)"
	case Size:
		return "25MB (KB MB GB KiB MiB GiB)"
	case Messages, Recipients:
		return "100/m or 100/m,1000/d,20000/30d (s m h d)"
	}
	return "a number, such as 100"
}

func parseOne(kind Kind, s string) (Limit, error) {
	fail := func(what string) (Limit, error) {
		return Limit{}, fmt.Errorf("limit %q: %s; write %s", s, what, example(kind))
	}
	l := Limit{Kind: kind}
	amount, window, ok := strings.Cut(s, "/")
	switch {
	case kind.Windowed() && !ok:
		return fail("it needs a window")
	case !kind.Windowed() && ok:
		return fail("it has no window")
	}
	var err error
	if l.Max, err = parseAmount(amount, kind.octets()); err != nil {
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
	errWindow = errors.New("the window is not s, m, h or d, or a number of them up to 366d")
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
	if err != nil || w < time.Second || w > MaxWindow {
		return 0, errWindow
	}
	return w, nil
}

// Text writes a limit as Parse reads it: "100/m", "1GB/d", "25MB".
func (l Limit) Text() string {
	amount := strconv.FormatInt(l.Max, 10)
	if l.Kind.octets() {
		amount = units.FormatOctets(l.Max)
	}
	if !l.Kind.Windowed() {
		return amount
	}
	window := units.FormatSpan(l.Window)
	if unit, one := strings.CutPrefix(window, "1"); one && len(unit) == 1 {
		window = unit
	}
	return amount + "/" + window
}

// String is the limit with its kind, as logs and the audit have it: "messages 100/m".
func (l Limit) String() string { return string(l.Kind) + " " + l.Text() }

// counted is what has one count: the key of a row of usage_window.
type counted struct {
	scope   Scope // not Default: those count all that the user sends
	subject string
	kind    Kind
	window  int32 // seconds
}

func (l Limit) counted() counted {
	c := counted{l.Scope, l.Subject, l.Kind, int32(l.Window / time.Second)}
	if l.Scope == Default {
		c.scope = User
	}
	return c
}

// compareCounted is the order in which all nodes lock rows.
func compareCounted(a, b counted) int {
	return cmp.Or(cmp.Compare(a.scope, b.scope), cmp.Compare(a.subject, b.subject), cmp.Compare(a.kind, b.kind), cmp.Compare(a.window, b.window))
}

// tighter reports that l allows less than other, or the same and was set more closely.
func tighter(l, other Limit) bool {
	return cmp.Or(cmp.Compare(l.Max, other.Max), cmp.Compare(closeness[other.Scope], closeness[l.Scope])) < 0
}

// Binds reports whether l, one of limits, is the tightest of those that count what it
// counts; of two as tight, the one set more closely. The same count has what is of one
// message, or of the same user, domain or credential.
func Binds(limits []Limit, l Limit) bool {
	for _, other := range limits {
		together := l.counted() == other.counted() || l.Kind == other.Kind && l.Kind.ofMessage()
		if together && tighter(other, l) {
			return false
		}
	}
	return true
}

func binding(limits []Limit, of func(Kind) bool) (tightest []Limit) {
	for _, l := range limits {
		if of(l.Kind) && Binds(limits, l) {
			tightest = append(tightest, l)
		}
	}
	return tightest
}

// Windows are those of limits that each message is charged against: for each count the
// tightest.
func Windows(limits []Limit) []Limit { return binding(limits, Kind.Windowed) }

// Smallest is the lowest of the limits of one message: those of the kind, and those of
// the windowed kind, in whose window a message cannot fit that is over it alone.
func Smallest(limits []Limit, kind, windowed Kind) (l Limit, ok bool) {
	for _, other := range limits {
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
