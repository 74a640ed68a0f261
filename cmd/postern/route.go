package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/internal/refusal"
	"postern/relay/queue/desk"
	"postern/relay/route"
)

func (a *app) routeCmd() *cobra.Command {
	return noun("route", "which way mail goes",
		a.routeAddCmd(), a.routeListCmd(), a.routeRemoveCmd())
}

func (a *app) routeAddCmd() *cobra.Command {
	var via string
	var replace, ifMissing bool
	cmd := &cobra.Command{
		Use:   "add --via UPSTREAM|mx",
		Short: "set the default route",
		Long: `Routes all mail to an upstream, or with 'mx' to the mail servers of each recipient's
domain. --replace replaces an existing default route atomically.

A route is looked up at every attempt, so a new one also moves waiting mail: mail that
waits because there was no route is due immediately; mail that another upstream deferred
follows at its next attempt ('postern queue retry --upstream NAME' makes that sooner).`,
		Example: `  postern route add --via out
  postern route add --via mx --replace`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rule := route.Rule{}
			if via == "" {
				return usagef("--via needs the name of an upstream, or mx")
			}
			if via != "mx" {
				rule.Upstreams = []string{via}
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				err := a.addRoute(ctx, users, rule, replace)
				if ifMissing && errors.Is(err, errRouteExists) {
					_, err = fmt.Fprintln(a.stdout, "there is a default route already; nothing is changed")
				}
				return err
			})
		},
	}
	cmd.Flags().StringVar(&via, "via", "", "name of the `upstream`, or mx")
	cmd.Flags().BoolVar(&replace, "replace", false, "take the place of the default route, if there is one")
	cmd.Flags().BoolVar(&ifMissing, "if-missing", false, ifMissingUsage)
	cmd.MarkFlagsMutuallyExclusive("replace", "if-missing")
	_ = cmd.MarkFlagRequired("via")
	return cmd
}

// noRoute begins the last reply of recipients that wait for a route.
const noRoute = "451 4.4.4 no route"

var errRouteExists = errors.New("there is a default route already: see 'postern route list', put this one in its place with --replace")

func (a *app) addRoute(ctx context.Context, users *accounts, rule route.Rule, replace bool) error {
	routes := route.NewStore(users.pool).As(users.actor)
	var id, was int64
	var err error
	if replace {
		id, was, err = routes.Replace(ctx, rule)
	} else {
		id, err = routes.Add(ctx, rule)
	}
	if errors.Is(err, refusal.ErrExists) {
		return errRouteExists
	}
	if err != nil {
		return err
	}
	said := fmt.Sprintf("added route %d: %s via %s", id, matchText(rule), viaText(rule))
	if was != 0 {
		said += fmt.Sprintf(", in the place of route %d", was)
	}
	fmt.Fprintln(a.stdout, said)
	return a.retryWaiting(ctx, users, noRoute, "for a route")
}

// retryWaiting makes due what waits without an attempt, with a reply that begins like this.
func (a *app) retryWaiting(ctx context.Context, users *accounts, reply, what string) error {
	q := users.queue()
	waits := desk.Filter{State: desk.StateWaiting, Reply: reply}
	n, err := q.Retry(ctx, waits, true)
	if err != nil || n == 0 { // an audit row only for what is done
		return err
	}
	// A node that does not know of the change yet would let it wait once more.
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(route.TableAge):
	}
	if n, err = q.Retry(ctx, waits, false); err != nil {
		return err
	}
	said := fmt.Sprintf("%d recipients that waited %s are due now", n, what)
	if n == 1 {
		said = "1 recipient that waited " + what + " is due now"
	}
	_, err = fmt.Fprintln(a.stdout, said)
	return err
}

func (a *app) routeListCmd() *cobra.Command {
	return listing[route.Rule]{
		head: []string{"ID", "MATCH", "VIA"},
		row: func(r route.Rule) []string {
			return []string{strconv.FormatInt(r.ID, 10), matchText(r), viaText(r)}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]route.Rule, error) {
			return route.NewStore(users.pool).List(ctx)
		},
	}.command(a, &cobra.Command{
		Use:   "list",
		Short: "list the routes",
		Long: `Lists the default route ("all mail"), the only one that 'postern route add' sets. Each
attempt looks it up anew.`,
		Args: noArguments,
	})
}

func viaText(r route.Rule) string {
	if r.MX() {
		return "mx"
	}
	return strings.Join(r.Upstreams, ", ")
}

func matchText(r route.Rule) string {
	var parts []string
	if r.UserID != 0 {
		parts = append(parts, "user "+strconv.FormatInt(r.UserID, 10))
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

func (a *app) routeRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "remove a route",
		Long: `Removes a route. Mail that no route matches waits until there is one: 'postern
route add --replace' changes the default route without that.`,
		Args: one("number", "the route's number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usagef("%q is not a route number: see 'postern route list'", args[0])
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				was, err := route.NewStore(users.pool).As(users.actor).Remove(ctx, id)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "removed route %d: %s via %s\n", id, matchText(was), viaText(was))
				return err
			})
		},
	}
}
