package story

import (
	"fmt"
	"io"
	"strconv"
	"strings"

	"postern/cmd/postern/screen"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

// Entry is a recipient as --json prints it.
type Entry struct {
	desk.Entry
	User string `json:"user,omitempty"` // its name
}

// Entries has the names, by id, of those users who are still there.
func Entries(list []desk.Entry, who map[int64]string) []Entry {
	return screen.Each(list, func(e desk.Entry) Entry { return Entry{e, who[e.UserID]} })
}

// EntryHead is the head of a table of entries, EntryRow a row of it.
func EntryHead() []string {
	return []string{"ID", "STATE", "ACCEPTED", "USER", "SENDER", "RECIPIENT", "TRIES", "NEXT", "LAST REPLY"}
}

// EntrySpare are the columns that a narrow terminal does without.
func EntrySpare() []string { return []string{"ACCEPTED", "USER", "SENDER", "TRIES", "NEXT"} }

// EntryRow says why mail that is set aside waits: it is not the last reply.
func EntryRow(e Entry) []string {
	next := "-"
	if e.State == desk.StateWaiting {
		next = screen.LocalTime(e.NextAttemptAt)
	}
	reply := e.LastReply
	if e.SetAside != "" {
		reply = "set aside: " + e.SetAside
	}
	state := string(e.State)
	if e.Doubt != "" {
		state += ", in doubt"
	}
	return []string{e.ID.String(), state, screen.LocalTime(e.AcceptedAt), userText(e.UserID, e.User), "<" + e.Sender + ">", e.Recipient,
		strconv.Itoa(e.Attempts), next, screen.OrDash(reply)}
}

// leftRow is an entry below its message, which says the rest.
func leftRow(e Entry) []string {
	row := EntryRow(e)
	return []string{row[5], row[1], row[6], row[7], row[8]}
}

// Hold is a hold of a user or credential as --json prints it.
type Hold struct {
	queue.UserHold
	User string `json:"user,omitempty"` // its name
}

// Holds has the names, by id, of those users who are still there.
func Holds(list []queue.UserHold, who map[int64]string) []Hold {
	return screen.Each(list, func(h queue.UserHold) Hold { return Hold{h, who[h.UserID]} })
}

// HoldRow is a row of a table of holds: user, credential, since, by, reason.
func HoldRow(h Hold) []string {
	credential := "all"
	if h.CredentialID != 0 {
		credential = strconv.FormatInt(h.CredentialID, 10)
	}
	return []string{userText(h.UserID, h.User), credential, screen.LocalTime(h.MadeAt), h.MadeBy, screen.OrDash(h.Reason)}
}

// Summary is one of several messages as --json prints it.
type Summary struct {
	desk.Summary
	User string `json:"user,omitempty"` // its name
}

// Summaries has the names, by id, of those users who are still there.
func Summaries(list []desk.Summary, who map[int64]string) []Summary {
	return screen.Each(list, func(s desk.Summary) Summary { return Summary{s, who[s.UserID]} })
}

// PrintSummaries lists several messages, and says how to see one.
func PrintSummaries(w io.Writer, list []Summary) error {
	t := screen.Table{Head: []string{"ID", "ACCEPTED", "SENDER", "RECIPIENTS", "STATE"}}
	for _, s := range list {
		to := s.Recipient
		if s.Recipients > 1 {
			to = fmt.Sprintf("%s and %d more", screen.OrDash(to), s.Recipients-1)
		}
		t.Add(s.ID.String(), screen.LocalTime(s.AcceptedAt), "<"+s.Sender+">", screen.OrDash(to), fateText(s.Summary))
	}
	if err := t.Print(w); err != nil {
		return err
	}
	_, err := fmt.Fprintln(w, "\nSeveral messages match: 'postern trace ID' shows one.")
	return err
}

// fateText says what became of a message's recipients: one word if it is the same for all.
func fateText(s desk.Summary) string {
	if s.Voided {
		return "refused after all"
	}
	var parts []string
	for _, p := range []struct {
		n    int
		what string
	}{{s.Delivered, "delivered"}, {s.Failed, "failed"}, {s.Cancelled, "cancelled"}, {s.Sending, "sending"}, {s.Waiting, "waiting"}, {s.Held, "held"}} {
		switch {
		case p.n == s.Recipients:
			parts = append(parts, p.what)
		case p.n > 0:
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.what))
		}
	}
	return screen.OrDash(strings.Join(parts, ", "))
}

// userText is a user for people, by number and name: "-" for the relay itself.
func userText(id int64, name string) string {
	switch {
	case id == 0:
		return "-"
	case name != "":
		return name
	}
	return "removed user " + strconv.FormatInt(id, 10)
}

// States are those of recipients, in the order of their lives.
func States() []desk.State {
	return []desk.State{desk.StateWaiting, desk.StateSending, desk.StateHeld, desk.StateFailed, desk.StateDelivered}
}
