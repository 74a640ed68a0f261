package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

// wayView is one of a route's ways.
type wayView struct {
	Via     string `json:"via"`
	SentAs  string `json:"sent_as,omitempty"` // the mailbox in the sender's place
	Trouble string `json:"trouble,omitempty"` // why it is left out now
}

func (w wayView) text() string {
	text := w.Via
	if w.SentAs != "" {
		text += " as " + w.SentAs
	}
	if w.Trouble != "" {
		text += " (" + w.Trouble + ")"
	}
	return text
}

// wayViews are the ways of a decision, in the order in which they are tried.
func wayViews(d route.Decision) []wayView {
	views := []wayView{}
	for _, w := range d.Ways {
		view := wayView{Via: w.Name}
		if w.Upstream != nil {
			view.SentAs = w.Upstream.RewriteSender
		}
		if w.Err != nil {
			view.Trouble = wayTrouble(w.Err)
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

// routingTable is the routing table of the nodes, as far as this machine has their key.
func (a *app) routingTable(users *accounts, cfg config.Config) (*route.Table, error) {
	sealer, err := a.source.PresentSealer(cfg)
	if err != nil {
		return nil, err
	}
	return route.NewTable(route.NewStore(users.pool), users.upstreams(sealer), time.Minute), nil
}

// routeTest is which way the mail for a recipient goes, and why.
type routeTest struct {
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

func (a *app) routeTestCmd() *cobra.Command {
	var user, from, to string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test --user U --from A --to B",
		Short: "show which way mail would go, and why",
		Long: `Shows the route of a recipient, its ways in the order in which they are tried and why
one would be left out now, and the routes before it with what of them does not match.
Nothing is sent; 'postern explain' also says whether the message would be accepted. '<>'
is the null sender of bounces. Without --user it is mail of the relay itself, as its
notices are.`,
		Example: "  postern route test --user alice@example.com --from alice@example.com --to bob@example.net",
		Args:    noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var sender smtp.Address
			var err error
			if from != auth.NullSender {
				if sender, err = smtp.ParseAddress(from); err != nil {
					return usagef("--from: %q is not an address: %v", from, err)
				}
			}
			recipient, err := smtp.ParseRecipient(to)
			if err != nil {
				return usagef("--to: %q is not an address: %v", to, err)
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				var id int64
				if user != "" {
					if id, _, err = userNamed(ctx, users.pool, user); err != nil {
						return err
					}
				}
				t, err := a.testRoute(ctx, users, id, sender, recipient)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, t)
				}
				return a.printRouteTest(t)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "`name` of the user who sends")
	f.StringVar(&from, "from", "", "`address` of the sender")
	f.StringVar(&to, "to", "", "`address` of the recipient")
	f.BoolVar(&asJSON, "json", false, "print JSON")
	_, _ = cmd.MarkFlagRequired("from"), cmd.MarkFlagRequired("to")
	return cmd
}

func (a *app) testRoute(ctx context.Context, users *accounts, user int64, from, to smtp.Address) (*routeTest, error) {
	cfg, _, err := a.source.Load()
	if err != nil {
		return nil, err
	}
	table, err := a.routingTable(users, cfg)
	if err != nil {
		return nil, err
	}
	d, err := table.Resolve(ctx, user, from, to)
	if err != nil && !errors.Is(err, route.ErrNoRoute) {
		return nil, err
	}
	rules, who, err := readRoutes(ctx, users)
	if err != nil {
		return nil, err
	}
	t := &routeTest{Route: d.Route, Ways: wayViews(d), Passed: []routeMissing{}}
	for _, r := range rules {
		if r.ID == d.Route {
			t.Match = matchText(r, who)
			break
		}
		if other := r.Mismatch(user, from, to); other != "" {
			t.Passed = append(t.Passed, routeMissing{r.ID, matchText(r, who), other})
		}
	}
	return t, nil
}

func (a *app) printRouteTest(t *routeTest) error {
	routes := screen.Table{Head: []string{"ROUTE", "MATCH", ""}}
	for _, p := range t.Passed {
		routes.Add(strconv.FormatInt(p.Route, 10), p.Match, "another "+p.Other)
	}
	if t.Route == 0 {
		if len(t.Passed) > 0 {
			if err := routes.Print(a.stdout); err != nil {
				return err
			}
		}
		_, err := fmt.Fprintln(a.stdout, "No route matches: the mail would wait.")
		return err
	}
	routes.Add(strconv.FormatInt(t.Route, 10), t.Match, "matches")
	if err := routes.Print(a.stdout); err != nil {
		return err
	}
	ways := screen.Table{Head: []string{"WAY", "AS", ""}}
	waits := true
	for _, w := range t.Ways {
		state := "can be used"
		if w.Trouble != "" {
			state = w.Trouble
		} else {
			waits = false
		}
		ways.Add(w.Via, screen.OrDash(w.SentAs), state)
	}
	fmt.Fprintln(a.stdout)
	if err := ways.Print(a.stdout); err != nil || !waits {
		return err
	}
	_, err := fmt.Fprintln(a.stdout, "\nNone can be used: the mail would wait.")
	return err
}

// waysText are all ways in a line.
func waysText(views []wayView) string {
	texts := make([]string, len(views))
	for i, w := range views {
		texts[i] = w.text()
	}
	return strings.Join(texts, ", then ")
}
