package story

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/cmd/postern/screen"
	"postern/internal/units"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

// Story is a history with what people want to know besides.
type Story struct {
	*desk.History
	User string           // the name of whose it is; "" if it was removed
	Held []queue.UserHold // those that keep mail like this, if something is to be done for it
}

// showView is a message as 'queue show --json' prints it, traceView adds the history.
type showView struct {
	Message messageView `json:"message"`
	Live    []Entry     `json:"live"`
	Holds   []Hold      `json:"holds"` // of its user or credential, while something is to be done
}

type messageView struct {
	desk.Accepted
	User string `json:"user,omitempty"` // its name
}

type traceView struct {
	showView
	Events  []eventView      `json:"history"`
	Notice  *desk.NoticeEnd  `json:"notice,omitempty"`  // the message is one
	Notices []desk.NoticeEnd `json:"notices,omitempty"` // about the message
}

type eventView struct {
	desk.Event
	Duration *float64 `json:"duration_s,omitempty"` // from started_at to at
}

// Show is the message as 'queue show --json' prints it.
func (s *Story) Show() any { return s.show() }

func (s *Story) show() showView {
	return showView{messageView{s.Message, s.User}, Entries(s.Live, s.who()), Holds(s.Held, s.who())}
}

func (s *Story) who() map[int64]string { return map[int64]string{s.Message.UserID: s.User} }

// Trace is the message as 'trace --json' prints it: with its history.
func (s *Story) Trace() any {
	events := screen.Each(s.Events, func(at desk.Event) eventView {
		view := eventView{Event: at}
		if at.StartedAt != nil {
			seconds := at.At.Sub(*at.StartedAt).Seconds()
			view.Duration = &seconds
		}
		return view
	})
	return traceView{showView: s.show(), Events: events, Notice: s.Notice, Notices: s.Notices}
}

// Print writes the message for people. Errors: w's.
func (s *Story) Print(w io.Writer) error {
	m := s.Message
	t := screen.Table{Head: []string{"MESSAGE", m.ID.String()}}
	t.Add("accepted", screen.LocalTime(m.AcceptedAt)+" by "+m.Node)
	if m.UserID != 0 {
		t.Add("user", userText(m.UserID, s.User))
	}
	t.Add("from", "<"+m.Sender+">")
	t.Add("recipients", strconv.Itoa(m.Recipients))
	t.Add("size", strconv.FormatInt(m.Size, 10))
	t.Add("Message-ID", screen.OrDash(m.MessageID))
	if m.ClientAddr != "" { // not the relay's own mail
		t.Add("client", m.ClientAddr+" "+screen.OrDash(m.ClientHello)+" "+screen.OrDash(m.TLS))
	}
	if m.Rule != "" {
		t.Add("rule", m.Rule)
	}
	if len(m.Tags) > 0 {
		t.Add("tags", strings.Join(m.Tags, " "))
	}
	if m.Metadata != nil {
		t.Add("metadata", metadataText(m.Metadata))
	}
	if len(m.Usage) > 0 {
		t.Add("used", usageText(m.Usage))
	}
	if m.VoidedAt != nil {
		t.Add("refused", screen.LocalTime(*m.VoidedAt)+": the client was told 451 after all; it is not delivered")
	}
	if s.Notice != nil {
		t.Add("notice", string(s.Notice.Kind)+", about "+s.Notice.About.String())
	}
	if err := t.Print(w); err != nil {
		return err
	}
	if len(s.Events) > 0 {
		fmt.Fprintln(w)
		if err := printEvents(w, s.Events); err != nil {
			return err
		}
	}
	lost := s.printLosses(w)
	switch {
	case s.Done() && lost:
		fmt.Fprintln(w, "\nNothing waits any more; docs/operate.md says what to do when a sender was not told.")
		return nil
	case s.Done():
		fmt.Fprintln(w, "\nNothing is waiting.")
		return nil
	}
	fmt.Fprintln(w)
	t = screen.TableOf([]string{"RECIPIENT", "STATE", "TRIES", "NEXT", "LAST REPLY"}, leftRow, Entries(s.Live, s.who()))
	t.Spare, t.Wraps = []string{"TRIES"}, true // the whole reply
	if err := t.Print(w); err != nil {
		return err
	}
	s.printWhyHeld(w)
	return nil
}

// printLosses says which senders were not told, in the trace of the notice and in that of
// the mail that it was about, and whether there are any.
func (s *Story) printLosses(w io.Writer) (lost bool) {
	if n := s.Notice; n != nil && n.Lost != "" {
		lost = true
		fmt.Fprintf(w, "\nThis notice was lost (%s): <%s> has not been told what became of message %s.\n", n.Lost, screen.Printable(n.To), n.About)
	}
	for _, n := range s.Notices {
		if n.Lost != "" {
			lost = true
			fmt.Fprintf(w, "\nThe %s notice %s was lost (%s%s): <%s> has not been told.\n",
				n.Kind, n.ID, n.Lost, screen.Printable(screen.Colon(n.Reply)), screen.Printable(n.To))
		}
	}
	return lost
}

// printDoubt says what may have become of a recipient's mail, and what ends the doubt.
func (s *Story) printDoubt(w io.Writer, e desk.Entry) {
	then := "is held until a person decides"
	if e.State == desk.StateWaiting {
		then = "is sent there again at " + screen.LocalTime(e.NextAttemptAt)
	}
	to := screen.Printable(e.Recipient)
	fmt.Fprintf(w, "\nThe mail for %s may have been delivered by way of %s, and %s. When you know:\n"+
		"'postern queue resolve %s --recipient %s' with --delivered if it was, with --resend if not.\n", to, e.StaysWith, then, s.Message.ID, to)
}

// printWhyHeld says which holds are the reason why mail waits, and what ends them.
func (s *Story) printWhyHeld(w io.Writer) {
	held := 0
	for _, e := range s.Live {
		switch {
		case e.SetAside != "":
			fmt.Fprintf(w, "\nThe mail for %s cannot be sent: %s.\n'postern queue release %s' tries again, 'queue cancel' deletes it.\n",
				screen.Printable(e.Recipient), screen.Printable(e.SetAside), s.Message.ID)
		case e.Doubt != "" && (e.State == desk.StateHeld || e.State == desk.StateWaiting):
			s.printDoubt(w, e)
		case e.State == desk.StateHeld:
			held++
		}
	}
	for _, h := range s.Held {
		what := "its user"
		if h.CredentialID != 0 {
			what = fmt.Sprintf("its credential %d", h.CredentialID)
		}
		user := userText(h.UserID, s.User)
		fmt.Fprintf(w, "\nIt is held because %s is on hold since %s, by %s%s.\n'postern queue release --user %s' releases all mail of the user.\n",
			what, screen.LocalTime(h.MadeAt), screen.Printable(h.MadeBy), screen.Printable(screen.Colon(h.Reason)), screen.Printable(user))
	}
	if held > 0 && len(s.Held) == 0 {
		fmt.Fprintf(w, "\nIt is held individually: 'postern queue release %s' releases it.\n", s.Message.ID)
	}
}

func printEvents(w io.Writer, list []desk.Event) error {
	t := screen.Table{Head: []string{"WHEN", "TOOK", "RECIPIENT", "RESULT", "VIA", "SERVER", "TLS", "NODE", "REPLY"}, Spare: []string{"NODE", "TLS", "TOOK", "SERVER"}, Wraps: true}
	for _, at := range list {
		later := slices.IndexFunc(at.Left, func(l queue.LeftWay) bool { return l.At.After(at.At) })
		if later < 0 {
			later = len(at.Left)
		}
		addLeft(&t, at.Recipient, at.Left[:later])
		result := withScope(at.Result, at.Scope)
		if result == "resolve" { // the other resolution is written as resend
			result += ", delivered"
		}
		for _, mark := range []struct {
			set  bool
			text string
		}{{at.OutcomeUnknown, "outcome unknown"}, {at.PossibleDuplicate, "possible duplicate"}, {at.Fenced, "fenced"}} {
			if mark.set {
				result += ", " + mark.text
			}
		}
		server := at.RemoteMTA
		if at.RemoteAddr != "" {
			server = strings.TrimSpace(server + " [" + at.RemoteAddr + "]")
		}
		via := at.Upstream
		if at.SentAs != "" {
			via += " as " + at.SentAs
		}
		took := "-"
		if at.StartedAt != nil {
			took = strconv.FormatFloat(at.At.Sub(*at.StartedAt).Seconds(), 'f', 2, 64) + "s"
		}
		t.Add(screen.LocalTime(at.At), took, at.Recipient, result, screen.OrDash(via), screen.OrDash(server), screen.OrDash(at.TLS), screen.OrDash(at.Node), screen.OrDash(at.Reply))
		addLeft(&t, at.Recipient, at.Left[later:])
	}
	return t.Print(w)
}

// addLeft adds the ways that an attempt left, in the order in which it did.
func addLeft(t *screen.Table, recipient string, list []queue.LeftWay) {
	for _, l := range list {
		t.Add(screen.LocalTime(l.At), "-", recipient, withScope("left", l.Scope), l.Way, screen.OrDash(l.Host), "-", "-", l.Reply)
	}
}

// metadataText writes an application's metadata in one line.
func metadataText(object any) string {
	b, err := json.Marshal(object)
	if err != nil {
		return "-"
	}
	return string(b)
}

func withScope(result, scope string) string {
	if scope == "" {
		return result
	}
	return result + " (" + scope + ")"
}

// usageText writes what a message used of its limits for people.
func usageText(list []desk.Use) string {
	texts := make([]string, len(list))
	for i, u := range list {
		used, most := strconv.FormatInt(u.Used, 10), strconv.FormatInt(u.Max, 10)
		if u.Kind == "bytes" {
			used, most = units.RoughOctets(u.Used), units.RoughOctets(u.Max)
		}
		texts[i] = fmt.Sprintf("%s %s/%s in %s", u.Kind, used, most, units.FormatSpan(time.Duration(u.Window)*time.Second))
		switch u.Scope {
		case "credential":
			texts[i] += " by credential"
		case "domain":
			texts[i] += " by all of " + u.Subject
		}
	}
	return strings.Join(texts, ", ")
}
