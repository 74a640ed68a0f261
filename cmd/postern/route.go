package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/relay/queue"
	"postern/relay/queue/desk"
	"postern/relay/route"
)

func (a *app) routeCmd() *cobra.Command {
	return noun("route", "manage the routes that mail takes",
		a.routeAddCmd(), a.routeListCmd(), a.routeMoveCmd(), a.routeRemoveCmd(), a.routeTestCmd())
}

// routeFlags are a rule, and where it is put.
type routeFlags struct {
	user, before string
	rule         route.Rule
}

func (a *app) routeAddCmd() *cobra.Command {
	var flags routeFlags
	var replace, ifMissing bool
	cmd := &cobra.Command{
		Use:   "add --via WAY[,WAY...]",
		Short: "add a route",
		Long: `Adds a route for the mail of a user, from a sender domain, to a recipient domain, or for
any combination of them; without any of the three it is the default route. The domains are
those of the envelope addresses; *.example.com stands for all domains below example.com.

The first route that matches a recipient decides. A new route comes after the existing
ones, or before another one with --before; the default route is always the last.

A way is an upstream, or 'mx' for the mail servers of the recipient's domain; 'mx' must be
the last way, or the only one. An attempt tries the ways in order and skips one that is
paused, that may not send as the sender, whose password cannot be decrypted, whose breaker
is open (it has been failing), or that has spent its budget. If one is down, or refuses
for a reason unrelated to the message, mail moves to the next, but never after a final dot
without a complete reply. --replace atomically replaces the route for the same mail and
keeps its place.

Routes are looked up at every attempt, so a new one also applies to waiting mail: mail
that waits for a route, or for a paused upstream, is due immediately; mail that another
upstream deferred follows at its next attempt ('postern queue retry --upstream NAME' makes
that sooner).`,
		Example: `  postern route add --via out
  postern route add --via out,mx --replace
  postern route add --sender-domain news.example.com --via ses
  postern route add --user scanner --recipient-domain '*.example.com' --via mx --before 3`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			flags.rule.Via = screen.Each(flags.rule.Via, strings.TrimSpace)
			if slices.Contains(flags.rule.Via, "") || len(flags.rule.Via) == 0 {
				return usagef("--via needs names of upstreams, or mx")
			}
			before, err := routeNumber(flags.before)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				rule, who := flags.rule, map[int64]string{}
				if flags.user != "" {
					id, name, err := userNamed(ctx, users.pool, flags.user)
					if err != nil {
						return err
					}
					rule.UserID, who[id] = id, name
				}
				err := a.addRoute(ctx, users, rule, before, replace, who)
				if ifMissing && errors.Is(err, refusal.ErrExists) {
					_, err = fmt.Fprintf(a.stdout, "%s already exists; nothing changed\n", routeText(rule, who))
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&flags.rule.Via, "via", nil, "`NAMES` of upstreams, in order; mx may come last, or alone")
	f.StringVar(&flags.user, "user", "", "`NAME` of the user who sends")
	f.StringVar(&flags.rule.SenderDomain, "sender-domain", "", "`DOMAIN` of the sender")
	f.StringVar(&flags.rule.RecipientDomain, "recipient-domain", "", "`DOMAIN` of the recipient")
	f.StringVar(&flags.before, "before", "", "try it before the route with this `ID`")
	f.BoolVar(&replace, "replace", false, "take the place of the route for the same mail, if there is one")
	f.BoolVar(&ifMissing, "if-missing", false, ifMissingUsage)
	cmd.MarkFlagsMutuallyExclusive("replace", "if-missing")
	_ = cmd.MarkFlagRequired("via")
	return cmd
}

// routeNumber reads the number of a route, 0 for "".
func routeNumber(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id < 1 {
		return 0, usagef("%q is not a route number: see 'postern route list'", text)
	}
	return id, nil
}

func (a *app) addRoute(ctx context.Context, users *accounts, rule route.Rule, before int64, replace bool, who map[int64]string) error {
	if err := rule.Normalise(); err != nil {
		return invalidUse(err)
	}
	routes := route.NewStore(users.pool).As(users.actor)
	var id, was int64
	var err error
	if replace {
		id, was, err = routes.Replace(ctx, rule, before)
	} else {
		id, err = routes.Add(ctx, rule, before)
	}
	if errors.Is(err, refusal.ErrExists) {
		return refusal.Exists("%s already exists: see 'postern route list', put this one in its place with --replace", routeText(rule, who))
	}
	if err != nil {
		return invalidUse(err)
	}
	said := fmt.Sprintf("added route %d: %s", id, ruleText(rule, who))
	if was != 0 {
		said += fmt.Sprintf(", in place of route %d", was)
	}
	fmt.Fprintln(a.stdout, said)
	return a.routesChanged(ctx, users, routes)
}

// routesChanged warns of routes that are never used, and makes due what waits for a
// route.
func (a *app) routesChanged(ctx context.Context, users *accounts, routes *route.Store) error {
	list, err := routes.List(ctx)
	if err != nil {
		return err
	}
	for i, r := range list {
		if by := route.HiddenBy(list, i); by != nil {
			fmt.Fprintf(a.stderr, "route %d is never used: route %d comes first and matches all its mail; 'postern route move %d --before %d' changes that\n",
				r.ID, by.ID, r.ID, by.ID)
		}
	}
	return a.retryWaiting(ctx, users)
}

// waits are the mail that a changed route or upstream may let go, by what it waits for. All such
// mail is tried: that is the first of several ways, and any of them may be free now.
var waits = []struct {
	text string
	kind []string
}{{"for a route", []string{queue.Route}}, {"for an upstream", []string{"upstream"}}, {"for a budget", []string{"budget", "sessions"}}}

// brief is how long a node takes to read its routes, or to look at what is due, unless something
// is slow.
const brief = 500 * time.Millisecond

// retryWaiting makes due what waits for a route or an upstream, once the nodes know of the change.
// One whose database is slow lets it wait once more: then that is made due again.
func (a *app) retryWaiting(ctx context.Context, users *accounts) error {
	if found, err := a.retryAfter(ctx, users, route.TableAge+brief, a.stdout); err != nil || !found {
		return err
	}
	if err := pause(ctx, brief); err != nil {
		return err
	}
	_, err := a.retryAfter(ctx, users, route.LoadTimeout, io.Discard)
	return err
}

// retryAfter makes due, after a time, what waits now for a route or an upstream, and says how much
// that is.
func (a *app) retryAfter(ctx context.Context, users *accounts, after time.Duration, out io.Writer) (found bool, err error) {
	q := users.queue()
	counts := make([]int, len(waits))
	for i, w := range waits {
		if counts[i], err = q.Retry(ctx, desk.Filter{State: desk.StateWaiting, WaitsFor: w.kind}, true); err != nil {
			return false, err
		}
		found = found || counts[i] > 0
	}
	if !found {
		return false, nil
	}
	if err := pause(ctx, after); err != nil {
		return false, err
	}
	for i, w := range waits {
		if counts[i] == 0 { // an audit row only for what is done
			continue
		}
		n, err := q.Retry(ctx, desk.Filter{State: desk.StateWaiting, WaitsFor: w.kind}, false)
		if err != nil {
			return false, err
		}
		fmt.Fprintln(out, screen.Count(n, "recipient"), "that waited", w.text, screen.Be(n), "due now")
	}
	return true, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// routeView is a route as it is listed.
type routeView struct {
	route.Rule
	User string `json:"user,omitempty"` // its name
}

func (a *app) routeListCmd() *cobra.Command {
	return listing[routeView]{
		head: []string{"ID", "MATCH", "VIA"},
		row: func(r routeView) []string {
			return []string{strconv.FormatInt(r.ID, 10), explain.MatchText(r.Rule, map[int64]string{r.UserID: r.User}), strings.Join(r.Via, ", ")}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]routeView, error) {
			rules, who, err := readRoutes(ctx, users)
			var list []routeView
			for _, r := range rules {
				list = append(list, routeView{r, who[r.UserID]})
			}
			return list, err
		},
	}.command(a, &cobra.Command{
		Use:   "list",
		Short: "list the routes in their order",
		Long: `Lists the routes in the order in which they are tried: the first that matches a
recipient decides. The default route ("all mail") is always the last. Each attempt looks
them up again.`,
		Args: noArguments,
	})
}

// readRoutes reads the rules with the names of their users.
func readRoutes(ctx context.Context, users *accounts) ([]route.Rule, map[int64]string, error) {
	rules, err := route.NewStore(users.pool).List(ctx)
	if err != nil {
		return nil, nil, err
	}
	who, err := users.Names(ctx, screen.Each(rules, func(r route.Rule) int64 { return r.UserID })...)
	return rules, who, err
}

func ruleText(r route.Rule, who map[int64]string) string {
	return explain.MatchText(r, who) + " via " + strings.Join(r.Via, ", ")
}

// routeText is a route with its article.
func routeText(r route.Rule, who map[int64]string) string {
	if r.IsDefault() {
		return "a default route"
	}
	return "a route for " + explain.MatchText(r, who)
}

func (a *app) routeMoveCmd() *cobra.Command {
	var to string
	var last bool
	cmd := &cobra.Command{
		Use:   "move ID --before ID|--last",
		Short: "change the order of the routes",
		Long: `Puts a route before another one, or with --last after all but the default route, which
is always the last.`,
		Example: `  postern route move 4 --before 2
  postern route move 2 --last`,
		Args: one("number", "the route's number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := routeNumber(args[0])
			if err != nil {
				return err
			}
			before, err := routeNumber(to)
			if err != nil {
				return err
			}
			if (before == 0) != last {
				return usagef("'%s' needs --before or --last", cmd.CommandPath())
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				routes := route.NewStore(users.pool).As(users.actor)
				if _, err := routes.Move(ctx, id, before); err != nil {
					return invalidUse(err)
				}
				place := "to the end"
				if before != 0 {
					place = fmt.Sprintf("before route %d", before)
				}
				fmt.Fprintf(a.stdout, "moved route %d %s\n", id, place)
				return a.routesChanged(ctx, users, routes)
			})
		},
	}
	cmd.Flags().StringVar(&to, "before", "", "put it before the route with this `ID`")
	cmd.Flags().BoolVar(&last, "last", false, "put it after all but the default route")
	cmd.MarkFlagsMutuallyExclusive("before", "last")
	return cmd
}

func (a *app) routeRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "remove a route",
		Long: `Removes a route. Mail that no route matches waits until there is one; to change a route
without such a wait, use 'postern route add --replace'. Removing a user removes the
user's routes.`,
		Args: one("number", "the route's number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := routeNumber(args[0])
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				_, who, err := readRoutes(ctx, users)
				if err != nil {
					return err
				}
				routes := route.NewStore(users.pool).As(users.actor)
				was, err := routes.Remove(ctx, id)
				if err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "removed route %d: %s\n", id, ruleText(was, who))
				if was.IsDefault() {
					fmt.Fprintln(a.stdout, "mail that no other route matches waits now, until 'postern route add' gives it one")
				}
				return a.routesChanged(ctx, users, routes)
			})
		},
	}
}
