package smarthost

import (
	"cmp"
	"fmt"
	"io"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/internal/units"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
)

// Upstream is an upstream with its breaker.
type Upstream struct {
	upstream.Listed
	Breaker breaker.State `json:"breaker"`
}

// State says whether it takes mail, and since when not.
func (u *Upstream) State() string {
	switch {
	case u.PausedAt != nil:
		return "paused since " + screen.LocalTime(*u.PausedAt)
	case u.Breaker.Open:
		return "breaker " + u.Breaker.Phase + " since " + screen.LocalTime(u.Breaker.Since)
	}
	return "active"
}

// Shown is an upstream as 'upstream show' shows it.
type Shown struct {
	Upstream
	Used    []budget.Usage `json:"used,omitempty"` // one, if it has a budget
	Replies []upstream.Row `json:"replies"`
}

// Text names an account and its server.
func Text(up upstream.Account) string {
	return fmt.Sprintf("%s: %s, TLS %s", up.Name, net.JoinHostPort(up.Host, strconv.Itoa(up.Port)), up.TLS)
}

// Print prints it; settings that are the default's have no row. Errors: out's.
func (s *Shown) Print(out io.Writer) error {
	t := screen.Table{Head: []string{"UPSTREAM", s.Name}}
	row := func(name, value string) {
		if value != "" {
			t.Add(name, value)
		}
	}
	number := func(name string, n int) {
		if n > 0 {
			t.Add(name, strconv.Itoa(n))
		}
	}
	row("host", net.JoinHostPort(s.Host, strconv.Itoa(s.Port)))
	row("TLS", string(s.TLS))
	if s.CustomCA {
		row("CA", "that of --ca-file")
	}
	row("TLS name", s.TLSName)
	for pin := range strings.SplitSeq(s.TLSPins, ",") {
		row("TLS pin", pin)
	}
	row("account", screen.OrDash(s.Username))
	row("tokens by", string(s.OAuth))
	row("mechanism", strings.ToLower(s.Mechanism))
	row("secret expires", s.SecretExpires)
	row("preset", s.Preset)
	number("connections", s.MaxConnections)
	number("messages per connection", s.MaxMessages)
	number("recipients per transaction", s.MaxRecipients)
	if s.IdleSeconds > 0 {
		row("idle time", units.FormatSpan(time.Duration(s.IdleSeconds)*time.Second))
	}
	row("source", s.Source)
	row("IP", s.IP)
	row("EHLO name", s.Hello)
	row("senders", strings.Join(s.Senders, ", "))
	row("sends as", s.RewriteSender)
	row("budget", s.Budget)
	row("DKIM keys", string(s.DKIM))
	row("in doubt", s.InDoubt)
	row("state", s.State())
	if b := &s.Breaker; b.Open {
		row("opened by node", b.Node)
		row("cause", b.Why())
		row("next probe", explain.NextProbe(b))
	}
	row("added", screen.LocalTime(s.CreatedAt))
	if err := t.Print(out); err != nil {
		return err
	}
	fmt.Fprintln(out)
	for _, u := range s.Used {
		if err := printBudget(out, u); err != nil {
			return err
		}
		fmt.Fprintln(out)
	}
	own := slices.DeleteFunc(slices.Clone(s.Replies), func(w upstream.Row) bool { return w.From == upstream.Generic })
	replies := screen.TableOf(ReplyHead(), ReplyRow, own)
	replies.Spare = ReplySpare()
	if len(own) > 0 {
		if err := replies.Print(out); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintf(out, "%s say what its replies mean: 'postern upstream reply list %s'\n", screen.Count(len(s.Replies), "row"), s.Name)
	return err
}

func printBudget(out io.Writer, u budget.Usage) error {
	if u.Err != nil {
		_, err := fmt.Fprintf(out, "the budget cannot be computed, so mail waits: %v\n", u.Err)
		return err
	}
	t := screen.Table{Head: []string{"BUDGET", "USED", "LEFT", "NEXT FREE"}}
	for _, l := range u.Limits {
		t.Add(l.Text, strconv.FormatInt(l.Used, 10), strconv.FormatInt(l.Left, 10), screen.Moment(l.FreeAt))
	}
	if err := t.Print(out); err != nil {
		return err
	}
	return PrintWaiting(out, u)
}

// PrintWaiting says how many wait for a budget, if any do. Errors: out's.
func PrintWaiting(out io.Writer, u budget.Usage) (err error) {
	if u.Waiting > 0 {
		_, err = fmt.Fprintf(out, "%s waiting for the budget of upstream %s, the last until %s\n", screen.Count(u.Waiting, "recipient"), u.Upstream, screen.Moment(u.LastTurn))
	}
	return err
}

// ReplyHead is above the columns of ReplyRow.
func ReplyHead() []string {
	return []string{"ID", "OF", "STAGE", "CODE", "ENHANCED", "TEXT", "RESULT", "SCOPE", "WAIT", "WHY"}
}

// ReplySpare are the columns that a narrow terminal does without.
func ReplySpare() []string { return []string{"WHY", "OF"} }

// ReplyRow is a row of the table of replies in a table.
func ReplyRow(w upstream.Row) []string {
	id, of, wait := "-", w.From, "-"
	if w.ID != 0 {
		id, of = strconv.FormatInt(w.ID, 10), "admin"
	}
	if w.Wait > 0 {
		wait = units.FormatSpan(w.Wait)
	}
	return []string{id, of, cmp.Or(string(w.Stage), "any"), w.Code, cmp.Or(w.Enhanced, "any"), cmp.Or(w.Text, "any"),
		string(w.Result), string(w.Scope), wait, screen.OrDash(w.Why)}
}

// Verdict is what a reply means, for programs.
type Verdict struct {
	Result upstream.Result `json:"result"`
	Scope  upstream.Scope  `json:"scope"`
	Wait   float64         `json:"wait_s,omitempty"`
	Row    *upstream.Row   `json:"row,omitempty"`
}
