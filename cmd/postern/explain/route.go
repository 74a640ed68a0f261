package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"postern/cmd/postern/screen"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
)

// wayView is one of a route's ways.
type wayView struct {
	Via     string `json:"via"`
	SentAs  string `json:"sent_as,omitempty"` // the mailbox in the sender's place
	Trouble string `json:"trouble,omitempty"` // why it is left out now

	Breaker *breaker.State `json:"breaker,omitempty"` // while it is open
	Budget  string         `json:"budget,omitempty"`  // what is left of it
	Spent   bool           `json:"spent,omitempty"`   // nothing is, so mail takes the next way or waits
}

func (w wayView) text() string {
	text := w.Via
	if w.SentAs != "" {
		text += " as " + w.SentAs
	}
	if state := w.state(); state != "" {
		text += " (" + state + ")"
	}
	return text
}

// usable reports that mail would go that way now.
func (w wayView) usable() bool { return w.Trouble == "" && w.Breaker == nil && !w.Spent }

// state is why it would not be used now or, if it would, what is left of its budget.
func (w wayView) state() string {
	switch {
	case w.Trouble != "":
		return w.Trouble
	case w.Breaker != nil:
		return OpenText(w.Breaker)
	case w.Spent:
		return "its budget is spent; " + w.Budget
	}
	return w.Budget
}

// OpenText says since when and why an upstream's breaker is open, and when it is probed.
func OpenText(s *breaker.State) string {
	return fmt.Sprintf("breaker open since %s (%s); next probe: %s", screen.LocalTime(s.Since), s.Why(), NextProbe(s))
}

// NextProbe is when the upstream of an open breaker is probed.
func NextProbe(s *breaker.State) string {
	if s.Prober != "" {
		return "now, by node " + s.Prober
	}
	return screen.LocalTime(s.NextProbe)
}

// wayViews are the ways of a decision, in their order.
func wayViews(d route.Decision, breakers breaker.States, budgets []budget.Usage) []wayView {
	views := []wayView{}
	for _, w := range d.Ways {
		view := wayView{Via: w.Name}
		if w.Upstream != nil {
			view.SentAs = w.Upstream.RewriteSender
		}
		if w.Err != nil {
			view.Trouble = wayTrouble(w.Err)
		}
		if s := breakers.Of(w.Name); s.Open {
			view.Breaker = &s
		}
		if at := slices.IndexFunc(budgets, func(u budget.Usage) bool { return u.Upstream == w.Name }); at >= 0 {
			view.Budget, view.Spent = budgets[at].Headroom(), budgets[at].Spent()
		}
		views = append(views, view)
	}
	return views
}

// wayTrouble says why a way is left out, as far as this machine can tell.
func wayTrouble(err error) string {
	switch {
	case errors.Is(err, upstream.ErrNoKey): // an error of the key itself has ended this before
		return "this machine has no key that opens the upstream's password"
	case errors.Is(err, seal.ErrSeal):
		return "the key of this machine does not open the upstream's password: " + err.Error()
	}
	return err.Error()
}

// waysText are all ways in a line.
func waysText(views []wayView) string {
	texts := make([]string, len(views))
	for i, w := range views {
		texts[i] = w.text()
	}
	return strings.Join(texts, ", then ")
}

// Route is which way the mail for a recipient goes, and why.
type Route struct {
	Route  int64          `json:"route,omitempty"` // 0: none matches
	Match  string         `json:"match,omitempty"`
	Ways   []wayView      `json:"ways"`
	Passed []routeMissing `json:"passed"` // the routes before it
}

// routeMissing is a route that does not match.
type routeMissing struct {
	Route int64  `json:"route"`
	Match string `json:"match"`
	Other string `json:"other"` // what is another: user, sender domain or recipient domain
}

// Routes are the routes of a relay.
type Routes struct {
	Table *route.Table
	Rules []route.Rule
	Names map[int64]string // of their users

	Breakers breaker.States
	Budgets  []budget.Usage
}

// Find finds the way of the mail from a user, 0 for none, to a recipient, and why it is that.
func (r Routes) Find(ctx context.Context, user int64, from, to smtp.Address) (*Route, error) {
	d, err := r.Table.Resolve(ctx, user, from, to)
	if err != nil && !errors.Is(err, route.ErrNoRoute) {
		return nil, err
	}
	t := &Route{Route: d.Route, Ways: wayViews(d, r.Breakers, r.Budgets), Passed: []routeMissing{}}
	for _, rule := range r.Rules {
		if rule.ID == d.Route {
			t.Match = MatchText(rule, r.Names)
			break
		}
		if other := rule.Mismatch(user, from, to); other != "" {
			t.Passed = append(t.Passed, routeMissing{rule.ID, MatchText(rule, r.Names), other})
		}
	}
	return t, nil
}

// MatchText says in words which mail a route takes; who has the names of users.
func MatchText(r route.Rule, who map[int64]string) string {
	var parts []string
	if r.UserID != 0 {
		parts = append(parts, "user "+screen.Printable(who[r.UserID]))
	}
	if r.SenderDomain != "" {
		parts = append(parts, "from "+r.SenderDomain)
	}
	if r.RecipientDomain != "" {
		parts = append(parts, "to "+r.RecipientDomain)
	}
	if len(parts) == 0 {
		return "all mail"
	}
	return strings.Join(parts, ", ")
}

// Print prints the route for people.
func (t *Route) Print(to io.Writer) error {
	routes := screen.Table{Head: []string{"ROUTE", "MATCH", ""}, Wraps: true}
	for _, p := range t.Passed {
		routes.Add(strconv.FormatInt(p.Route, 10), p.Match, "another "+p.Other)
	}
	if t.Route == 0 {
		if len(t.Passed) > 0 {
			if err := routes.Print(to); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(to, "No route matches: the mail would wait.")
		return err
	}
	routes.Add(strconv.FormatInt(t.Route, 10), t.Match, "matches")
	if err := routes.Print(to); err != nil {
		return err
	}
	ways := screen.Table{Head: []string{"WAY", "AS", ""}, Wraps: true}
	waits := true
	for _, w := range t.Ways {
		waits = waits && !w.usable()
		ways.Add(w.Via, screen.OrDash(w.SentAs), cmp.Or(w.state(), "can be used"))
	}
	fmt.Fprintln(to)
	if err := ways.Print(to); err != nil || !waits {
		return err
	}
	_, err := fmt.Fprintln(to, "\nNone can be used: the mail would wait.")
	return err
}
