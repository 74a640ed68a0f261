package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
	"postern/internal/units"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

func (a *app) traceCmd() *cobra.Command {
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "trace ID|MESSAGE-ID|ADDRESS",
		Short: "show the history of a message",
		Long: `Shows when and from whom a message was accepted, by which rule and with how much of
the sender's limits used. It also shows every attempt with the reply of the server, and
the recipients that are not finished. Finished mail can be traced for as long as history
in [queue] of the configuration says.

ID is the queue id from the 250 reply or the Received field. A Message-ID field, or an
envelope address of the sender or a recipient, may match several messages: those are
listed, the newest first.`,
		Example: `  postern trace 01890000-0000-7000-8000-000000000000
  postern trace '<20260102.3@example.com>'
  postern trace bob@example.net --limit 5`,
		Args: one("message", "a queue id, a Message-ID or an address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			id, err := parseID(args[0])
			if err != nil && !strings.Contains(args[0], "@") && !strings.HasPrefix(args[0], "<") {
				return usagef("%q is not a queue id, Message-ID or address", args[0])
			}
			return a.withQueue(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, q *desk.Admin) error {
				if err == nil {
					return a.trace(ctx, pool, q, id, asJSON)
				}
				return a.find(ctx, pool, q, args[0], limit, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: an object for one message, a list for several")
	cmd.Flags().IntVar(&limit, "limit", 20, "list at most `N` messages")
	return cmd
}

// trace tells of one message.
func (a *app) trace(ctx context.Context, pool *pgxpool.Pool, q *desk.Admin, id queue.ID, asJSON bool) error {
	h, err := q.Trace(ctx, id)
	if err != nil {
		return unknownMessage(id, err)
	}
	story, err := storyOf(ctx, pool, q, h)
	if err != nil {
		return err
	}
	if asJSON {
		return printJSON(a.stdout, story.trace())
	}
	return a.printStory(story)
}

// find traces the one message with a Message-ID or an address, or lists several.
func (a *app) find(ctx context.Context, pool *pgxpool.Pool, q *desk.Admin, what string, limit int, asJSON bool) error {
	ids, err := q.Find(ctx, what, limit+1) // one more, to know whether there are more
	if err != nil {
		return err
	}
	more := len(ids) > limit
	ids = ids[:min(limit, len(ids))]
	switch {
	case len(ids) == 0:
		return fmt.Errorf("no message with Message-ID or address %s is in the queue or in its history", what)
	case len(ids) == 1 && !more:
		return a.trace(ctx, pool, q, ids[0], asJSON)
	}
	list, err := q.Summaries(ctx, ids)
	if err != nil {
		return err
	}
	var users []int64
	for _, s := range list {
		users = append(users, s.UserID)
	}
	who, err := userNames(ctx, pool, users...)
	if err != nil {
		return err
	}
	if asJSON {
		views := []summaryView{}
		for _, s := range list {
			views = append(views, summaryView{s, who[s.UserID]})
		}
		return printJSON(a.stdout, views)
	}
	return a.printSummaries(list, more, limit)
}

// summaryView is one of several messages as --json prints it.
type summaryView struct {
	desk.Summary
	User string `json:"user,omitempty"` // its name
}

func (a *app) printSummaries(list []desk.Summary, more bool, limit int) error {
	t := table{head: []string{"ID", "ACCEPTED", "SENDER", "RECIPIENTS", "STATE"}}
	for _, s := range list {
		to := s.Recipient
		if s.Recipients > 1 {
			to = fmt.Sprintf("%s and %d more", screen.OrDash(to), s.Recipients-1)
		}
		t.add(s.ID.String(), screen.LocalTime(s.AcceptedAt), "<"+s.Sender+">", screen.OrDash(to), fateText(s))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	fmt.Fprintln(a.stdout, "\nSeveral messages match: 'postern trace ID' shows one.")
	if more {
		fmt.Fprintf(a.stdout, "There are more than %d: --limit shows more.\n", limit)
	}
	return nil
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

// story is a history with what people want to know besides.
type story struct {
	*desk.History
	who   names
	holds []queue.UserHold // that keep mail like this
}

func storyOf(ctx context.Context, pool *pgxpool.Pool, q *desk.Admin, h *desk.History) (*story, error) {
	s := &story{History: h}
	var err error
	if s.who, err = userNames(ctx, pool, h.Message.UserID); err != nil || h.Done() {
		return s, err
	}
	all, err := q.UserHolds(ctx)
	for _, hold := range all {
		if hold.UserID == h.Message.UserID && (hold.CredentialID == 0 || hold.CredentialID == h.Message.CredentialID) {
			s.holds = append(s.holds, hold)
		}
	}
	return s, err
}

// showView is a message as 'queue show --json' prints it, traceView adds the history.
type showView struct {
	Message messageView `json:"message"`
	Live    []entryView `json:"live"`
	Holds   []holdView  `json:"holds"` // of its user or credential, while something is to be done
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

func (s *story) show() showView {
	return showView{messageView{s.Message, s.who[s.Message.UserID]}, entryViews(s.Live, s.who), holdViews(s.holds, s.who)}
}

func (s *story) trace() traceView {
	v := traceView{showView: s.show(), Events: []eventView{}, Notice: s.Notice, Notices: s.Notices}
	for _, at := range s.Events {
		view := eventView{Event: at}
		if at.StartedAt != nil {
			seconds := at.At.Sub(*at.StartedAt).Seconds()
			view.Duration = &seconds
		}
		v.Events = append(v.Events, view)
	}
	return v
}

func (a *app) printStory(s *story) error {
	m := s.Message
	t := table{head: []string{"MESSAGE", m.ID.String()}}
	t.add("accepted", screen.LocalTime(m.AcceptedAt)+" by "+m.Node)
	if m.UserID != 0 {
		t.add("user", s.who.text(m.UserID))
	}
	t.add("from", "<"+m.Sender+">")
	t.add("recipients", strconv.Itoa(m.Recipients))
	t.add("size", strconv.FormatInt(m.Size, 10))
	t.add("Message-ID", screen.OrDash(m.MessageID))
	t.add("client", screen.OrDash(m.ClientAddr)+" "+screen.OrDash(m.ClientHello)+" "+screen.OrDash(m.TLS))
	if m.Rule != "" {
		t.add("rule", m.Rule)
	}
	if len(m.Usage) > 0 {
		t.add("used", usageText(m.Usage))
	}
	if m.VoidedAt != nil {
		t.add("refused", screen.LocalTime(*m.VoidedAt)+": the client was told 451 after all; it is not delivered")
	}
	if s.Notice != nil {
		t.add("notice", string(s.Notice.Kind)+", about "+s.Notice.About.String())
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(s.Events) > 0 {
		fmt.Fprintln(a.stdout)
		if err := a.printEvents(s.Events); err != nil {
			return err
		}
	}
	lost := a.printLosses(s)
	switch {
	case s.Done() && lost:
		fmt.Fprintln(a.stdout, "\nNothing waits any more; docs/operate.md says what to do when a sender was not told.")
		return nil
	case s.Done():
		fmt.Fprintln(a.stdout, "\nNothing is left to be done.")
		return nil
	}
	fmt.Fprintln(a.stdout)
	t = tableOf(entryHead, entryRow, entryViews(s.Live, s.who))
	if err := t.print(a.stdout); err != nil {
		return err
	}
	a.printWhyHeld(s)
	return nil
}

// printLosses says which senders were not told, in the trace of the notice and in that of
// the mail that it was about, and whether there are any.
func (a *app) printLosses(s *story) (lost bool) {
	if n := s.Notice; n != nil && n.Lost != "" {
		lost = true
		fmt.Fprintf(a.stdout, "\nThis notice was lost (%s): <%s> has not been told what became of message %s.\n", n.Lost, screen.Printable(n.To), n.About)
	}
	for _, n := range s.Notices {
		if n.Lost != "" {
			lost = true
			fmt.Fprintf(a.stdout, "\nThe %s notice %s was lost (%s%s): <%s> has not been told.\n",
				n.Kind, n.ID, n.Lost, screen.Printable(colon(n.Reply)), screen.Printable(n.To))
		}
	}
	return lost
}

// printWhyHeld says which holds are the reason why mail waits, and what ends them.
func (a *app) printWhyHeld(s *story) {
	held := 0
	for _, e := range s.Live {
		switch {
		case e.SetAside != "":
			fmt.Fprintf(a.stdout, "\nThe mail for %s cannot be sent: %s.\n'postern queue release %s' tries again, 'queue cancel' throws it away.\n",
				screen.Printable(e.Recipient), screen.Printable(e.SetAside), s.Message.ID)
		case e.State == desk.StateHeld:
			held++
		}
	}
	for _, h := range s.holds {
		what := "its user"
		if h.CredentialID != 0 {
			what = fmt.Sprintf("its credential %d", h.CredentialID)
		}
		user := s.who.text(h.UserID)
		fmt.Fprintf(a.stdout, "\nIt is held because %s is on hold since %s, by %s%s.\n'postern queue release --user %s' lets all mail of the user go.\n",
			what, screen.LocalTime(h.MadeAt), screen.Printable(h.MadeBy), screen.Printable(colon(h.Reason)), screen.Printable(user))
	}
	if held > 0 && len(s.holds) == 0 {
		fmt.Fprintf(a.stdout, "\nIt is held by itself: 'postern queue release %s' lets it go.\n", s.Message.ID)
	}
}

// colon is ": s", or nothing.
func colon(s string) string {
	if s == "" {
		return ""
	}
	return ": " + s
}

func (a *app) printEvents(list []desk.Event) error {
	t := table{head: []string{"WHEN", "TOOK", "RECIPIENT", "RESULT", "VIA", "SERVER", "TLS", "NODE", "REPLY"}}
	for _, at := range list {
		result := at.Result
		if at.Scope != "" {
			result += " (" + at.Scope + ")"
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
		took := "-"
		if at.StartedAt != nil {
			took = strconv.FormatFloat(at.At.Sub(*at.StartedAt).Seconds(), 'f', 2, 64) + "s"
		}
		t.add(screen.LocalTime(at.At), took, at.Recipient, result, screen.OrDash(at.Upstream), screen.OrDash(server), screen.OrDash(at.TLS), screen.OrDash(at.Node), screen.OrDash(at.Reply))
		for _, l := range at.Left {
			t.add(screen.LocalTime(l.At), "-", at.Recipient, "left", l.Way, screen.OrDash(l.Host), "-", "-", l.Reply)
		}
	}
	return t.print(a.stdout)
}

// usageText writes what a message used of its limits for people.
func usageText(list []desk.Use) string {
	texts := make([]string, len(list))
	for i, u := range list {
		used, most := strconv.FormatInt(u.Used, 10), strconv.FormatInt(u.Max, 10)
		if u.Kind == "bytes" {
			used, most = octetsText(u.Used), octetsText(u.Max)
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

// octetsText writes a number of octets with three digits or so and a unit of size.
func octetsText(n int64) string {
	for _, unit := range []struct {
		octets float64
		name   string
	}{{1e12, "TB"}, {1e9, "GB"}, {1e6, "MB"}, {1e3, "KB"}} {
		if float64(n) >= unit.octets {
			return strings.TrimSuffix(strconv.FormatFloat(float64(n)/unit.octets, 'f', 1, 64), ".0") + unit.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// traceWhenDone prints the trace of a message as soon as nothing is left to be done
// for it, or what there is when ctx ends.
func (a *app) traceWhenDone(ctx context.Context, url string, id queue.ID) error {
	pool, err := a.database.OpenPool(ctx, url, "trace", 1, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	q := desk.NewAdmin(pool)
	for {
		h, err := q.Trace(ctx, id)
		if err != nil {
			return err
		}
		if h.Done() {
			return a.printTrace(ctx, pool, q, h)
		}
		select {
		case <-ctx.Done():
			return errors.Join(a.printTrace(context.WithoutCancel(ctx), pool, q, h), errors.New("the message is not finished"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *app) printTrace(ctx context.Context, pool *pgxpool.Pool, q *desk.Admin, h *desk.History) error {
	ctx, cancel := context.WithTimeout(ctx, database.ConnectTime)
	defer cancel()
	story, err := storyOf(ctx, pool, q, h)
	if err != nil {
		return err
	}
	return a.printStory(story)
}
