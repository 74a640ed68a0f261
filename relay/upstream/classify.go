package upstream

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/refusal"
	"postern/relay/smtp"
)

// Stage is where in the conversation a reply came.
type Stage string

const (
	StageAny     Stage = ""
	StageConnect Stage = "connect" // to the greeting, and EHLO
	StageTLS     Stage = "tls"
	StageAuth    Stage = "auth"
	StageMail    Stage = "mail"
	StageRcpt    Stage = "rcpt"
	// StageMore is RCPT where another recipient of the transaction was accepted before. A
	// row of this stage says that the server wants the recipient in another transaction;
	// rows of StageRcpt match here too.
	StageMore Stage = "more"
	StageData Stage = "data" // DATA and the message, before the final dot
	StageDot  Stage = "dot"
)

// Stages lists the stages that rows have, beside StageAny.
func Stages() []Stage {
	return []Stage{StageConnect, StageTLS, StageAuth, StageMail, StageRcpt, StageMore, StageData, StageDot}
}

// Result is what a reply means for the mail that it answers.
type Result string

const (
	Delivered Result = "delivered"
	Later     Result = "later"
	Never     Result = "never"
)

// Scope is what a reply is about, beyond the mail that it answers.
type Scope string

const (
	ScopeRecipient  Scope = "recipient"
	ScopeMessage    Scope = "message"
	ScopeSender     Scope = "sender"     // what this upstream lets us send as
	ScopeAccount    Scope = "account"    // our account with the upstream, whoever sends
	ScopeConnection Scope = "connection" // another one may do
	ScopeHost       Scope = "host"       // the server, whoever asks
)

// Scopes lists the scopes that rows have.
func Scopes() []Scope {
	return []Scope{ScopeRecipient, ScopeMessage, ScopeSender, ScopeAccount, ScopeConnection, ScopeHost}
}

// OfMail reports a scope that concerns nothing beyond the mail itself.
func (s Scope) OfMail() bool { return s == ScopeRecipient || s == ScopeMessage }

// OfAccount reports a scope that concerns what we are to the upstream.
func (s Scope) OfAccount() bool { return s == ScopeAccount || s == ScopeSender }

// Row says what the replies that it matches mean. The text is the beginning of theirs, without
// regard to case and to the kind and amount of white space. A server that repeats an address
// puts its own words or a bracket first, but not all do; so the word in which the text ends
// may hold no "@".
type Row struct {
	ID       int64         `json:"id,omitempty" toml:"-"`              // of a row that an admin has added
	From     string        `json:"from,omitempty" toml:"-"`            // the preset that it belongs to
	Stage    Stage         `json:"stage,omitempty" toml:"stage"`       // "": any
	Code     string        `json:"code" toml:"code"`                   // "554", or "55x", "5xx"
	Enhanced string        `json:"enhanced,omitempty" toml:"enhanced"` // "5.2.0", "5.7.x", "x.5.3"; "none": without one; "": any
	Text     string        `json:"text,omitempty" toml:"text"`         // "": any
	Result   Result        `json:"result" toml:"result"`               // later or never
	Scope    Scope         `json:"scope" toml:"scope"`                 //
	Wait     time.Duration `json:"-" toml:"-"`                         // before the next attempt; 0: as the schedule has it
	Why      string        `json:"why,omitempty" toml:"why"`           // where it is known from
	Do       string        `json:"do,omitempty" toml:"do"`             // what an admin does about it
	WaitText string        `json:"wait,omitempty" toml:"wait"`         // Wait, in the file of presets and for programs
}

// Verdict is what a reply means.
type Verdict struct {
	Result Result
	Scope  Scope
	Row    *Row // that decided; nil: the reply's class and stage did
}

// Wait is the time before the next attempt, 0 for as the schedule has it.
func (v Verdict) Wait() time.Duration {
	if v.Row == nil {
		return 0
	}
	return v.Row.Wait
}

// InAnother reports that the server wants the recipient in another transaction.
func (v Verdict) InAnother() bool { return v.Row != nil && v.Row.Stage == StageMore }

// Replies is the table of an upstream: the first row that matches a reply decides. It is
// immutable; nil is that of mail hosts, MX.
type Replies struct{ rows []Row }

// Rows lists the table in its order.
func (t *Replies) Rows() []Row {
	if t == nil {
		return mailHosts().rows
	}
	return t.rows
}

// Classify says what a reply at a stage means. Only a positive reply to the final dot is
// Delivered; another one that is not negative is Later, since the conversation has to go on.
func (t *Replies) Classify(stage Stage, r smtp.Reply) Verdict {
	switch {
	case r.IsPositive() && stage == StageDot:
		return Verdict{Result: Delivered, Scope: ScopeMessage}
	case !r.IsTemporary() && !r.IsPermanent():
		return Verdict{Result: Later, Scope: ScopeMessage}
	}
	rows, text := t.Rows(), fold(r.Text)
	for i := range rows {
		if rows[i].matches(stage, r) && begins(text, rows[i].Text) {
			return Verdict{rows[i].Result, rows[i].Scope, &rows[i]}
		}
	}
	return unknown(stage, r)
}

// unknown judges a reply that no row matches. Before MAIL it concerns no message, so nothing
// is final.
func unknown(stage Stage, r smtp.Reply) Verdict {
	v := Verdict{Result: Later, Scope: ScopeMessage}
	switch stage {
	case StageConnect, StageTLS:
		return Verdict{Result: Later, Scope: ScopeHost}
	case StageAuth:
		return Verdict{Result: Later, Scope: ScopeAccount}
	case StageRcpt, StageMore:
		v.Scope = ScopeRecipient
	}
	if r.IsPermanent() {
		v.Result = Never
	}
	return v
}

// BeforeMail reports a stage whose replies answer no message.
func (s Stage) BeforeMail() bool { return s == StageConnect || s == StageTLS || s == StageAuth }

// matches compares all but the text.
func (w *Row) matches(stage Stage, r smtp.Reply) bool {
	at := w.Stage == StageAny || w.Stage == stage || w.Stage == StageRcpt && stage == StageMore
	if w.Result == Never && stage.BeforeMail() {
		return false // it answers no mail, so nothing is final
	}
	return at && matchesDigits(w.Code, r.Code) && w.matchesEnhanced(r.Enhanced)
}

// covers reports that w matches every reply that other does.
func (w *Row) covers(other *Row) bool {
	if w.Stage != StageAny && w.Stage != other.Stage && !(w.Stage == StageRcpt && other.Stage == StageMore) ||
		w.Result == Never && other.Result != Never && other.Stage == StageAny || !strings.HasPrefix(other.Text, w.Text) {
		return false
	}
	part := func(wide, narrow string) bool { return wide == "x" || wide == narrow }
	if !slices.EqualFunc(strings.Split(w.Code, ""), strings.Split(other.Code, ""), part) {
		return false
	}
	return w.Enhanced == "" || slices.EqualFunc(strings.Split(w.Enhanced, "."), strings.Split(other.Enhanced, "."), part)
}

// HiddenBy returns the first row before the one with this id that matches all of its replies,
// nil if there is none.
func (t *Replies) HiddenBy(id int64) *Row {
	i := slices.IndexFunc(t.rows, func(w Row) bool { return w.ID == id })
	for n := range max(i, 0) {
		if t.rows[n].covers(&t.rows[i]) {
			return &t.rows[n]
		}
	}
	return nil
}

// matchesDigits compares three digits with a pattern, in which x is any.
func matchesDigits(pattern string, code int) bool {
	for i := 2; i >= 0; i-- {
		if c := pattern[i]; c != 'x' && int(c-'0') != code%10 {
			return false
		}
		code /= 10
	}
	return code == 0
}

func (w *Row) matchesEnhanced(e smtp.EnhancedCode) bool {
	switch w.Enhanced {
	case "":
		return true
	case "none":
		return e.IsZero()
	}
	if e.IsZero() {
		return false
	}
	rest := w.Enhanced
	for _, n := range []int{e.Class, e.Subject, e.Detail} {
		var part string
		part, rest, _ = strings.Cut(rest, ".")
		if part != "x" && part != strconv.Itoa(n) {
			return false
		}
	}
	return true
}

// begins reports that a text begins with prefix, both as fold leaves them.
func begins(text, prefix string) bool {
	rest, ok := strings.CutPrefix(text, prefix)
	if !ok || prefix == "" {
		return ok
	}
	word, _, _ := strings.Cut(rest, " ")
	return !strings.Contains(word, "@")
}

// fold is a text in lower case with single spaces.
func fold(text string) string { return strings.ToLower(strings.Join(strings.Fields(text), " ")) }

// normalise checks the row and brings its patterns into the form that is compared.
func (w *Row) normalise() error {
	w.Code, w.Enhanced, w.Text = strings.ToLower(w.Code), strings.ToLower(w.Enhanced), fold(w.Text)
	switch {
	case !isCode(w.Code):
		return refusal.Invalid("code %q is not of the form 554, 55x, 5xx or 4xx", w.Code)
	case w.Enhanced != "" && w.Enhanced != "none" && !isEnhanced(w.Enhanced):
		return refusal.Invalid("enhanced code %q is not of the form 5.2.0, 5.7.x, x.5.3 or none", w.Enhanced)
	case w.Enhanced != "" && strings.IndexByte("nx"+w.Code[:1], w.Enhanced[0]) < 0:
		return refusal.Invalid("enhanced code %s never comes with code %s: a reply's enhanced code of another class is ignored", w.Enhanced, w.Code)
	case len(w.Text) > maxText:
		return refusal.Invalid("the text has %d octets, at most %d are allowed", len(w.Text), maxText)
	case strings.Contains(w.Text, "@"):
		return refusal.Invalid(`the text has "@": replies are not compared beyond an address`)
	case w.Result != Later && w.Result != Never:
		return refusal.Invalid("result %q is neither later nor never", w.Result)
	case w.Result == Never && w.Stage.BeforeMail():
		return refusal.Invalid("result never is for replies to mail, not for stage %q", w.Stage)
	case w.Result == Never && !w.Scope.OfMail():
		return refusal.Invalid("result never is for a recipient or a message: a fault of the %s fails no mail", w.Scope)
	case w.Result == Never && w.Code[0] == '4' && (strings.HasSuffix(w.Code, "x") || w.Enhanced == "" && w.Text == ""):
		return refusal.Invalid("a %s is temporary: result never needs the whole code, such as 451, and --text or --enhanced", w.Code)
	case w.Wait < 0 || w.Wait > maxWait:
		return refusal.Invalid("the wait is longer than %v hours", maxWait.Hours())
	case w.Wait > 0 && w.Result == Never:
		return refusal.Invalid("result never has no wait")
	case w.Wait > 0:
		w.WaitText = w.Wait.String()
	}
	return w.checkWords()
}

// Known reports a stage that rows have, StageAny among them.
func (s Stage) Known() bool { return s == StageAny || slices.Contains(Stages(), s) }

func (w *Row) checkWords() error {
	switch {
	case !w.Stage.Known():
		return refusal.Invalid("stage %q is none of %s", w.Stage, Words(Stages()))
	case !slices.Contains(Scopes(), w.Scope):
		return refusal.Invalid("scope %q is none of %s", w.Scope, Words(Scopes()))
	}
	return nil
}

// Words lists stages or scopes for people, with commas between them.
func Words[T ~string](list []T) string {
	var words []string
	for _, word := range list {
		words = append(words, string(word))
	}
	return strings.Join(words, ", ")
}

const (
	maxText = 200
	maxWait = 24 * time.Hour
)

func isCode(s string) bool {
	if len(s) != 3 || s[0] != '4' && s[0] != '5' || s[1] == 'x' && s[2] != 'x' {
		return false
	}
	return strings.Trim(s[1:], "0123456789x") == ""
}

func isEnhanced(s string) bool {
	parts := strings.Split(s, ".")
	for _, part := range parts {
		n, err := strconv.Atoi(part)
		if part != "x" && (err != nil || n < 0 || n > 999 || part != strconv.Itoa(n)) {
			return false
		}
	}
	return len(parts) == 3
}

// String is the row's pattern for people: "554 5.2.0 text… at dot".
func (w Row) String() string {
	s := w.Code
	if w.Enhanced != "" {
		s += " " + w.Enhanced
	}
	if w.Text != "" {
		s += fmt.Sprintf(" %q", w.Text)
	}
	if w.Stage != StageAny {
		s += " at " + string(w.Stage)
	}
	return s
}
