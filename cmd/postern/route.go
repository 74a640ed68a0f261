package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/relay/route"
)

func (a *app) routeCmd() *cobra.Command {
	return noun("route", "which way mail goes",
		a.routeAddCmd(), a.routeListCmd(), a.routeRemoveCmd())
}

func (a *app) routeAddCmd() *cobra.Command {
	var via string
	cmd := &cobra.Command{
		Use:   "add --via UPSTREAM|mx",
		Short: "set the default route",
		Long: `Sets where mail goes: to an upstream, or with 'mx' straight to the servers of
each recipient's domain. A route is looked up at every attempt, so a new one also
moves mail that waits already.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rule := route.Rule{}
			if via == "" {
				return usagef("--via needs the name of an upstream, or mx")
			}
			if via != "mx" {
				rule.Upstreams = []string{via}
			}
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				id, err := route.NewStore(pool, nil).AddRoute(ctx, rule)
				if errors.Is(err, route.ErrExists) {
					return errors.New("there is a default route already: see 'postern route list', take it away with 'postern route remove ID'")
				}
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "added route %d: all mail via %s\n", id, via)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&via, "via", "", "name of the `upstream`, or mx")
	_ = cmd.MarkFlagRequired("via")
	return cmd
}

func (a *app) routeListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list the routes in the order in which they are tried",
		Args:  noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				list, err := route.NewStore(pool, nil).ListRoutes(ctx)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				t := table{head: []string{"ID", "MATCH", "VIA"}}
				for _, r := range list {
					via := "mx"
					if !r.MX() {
						via = strings.Join(r.Upstreams, ", ")
					}
					t.add(strconv.FormatInt(r.ID, 10), matchText(r), via)
				}
				return t.print(a.stdout)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
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
		Args:  exactly(1, "the route's number"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[0], 10, 64)
			if err != nil {
				return usagef("%q is no route number: see 'postern route list'", args[0])
			}
			return a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) error {
				_, err := route.NewStore(pool, nil).RemoveRoute(ctx, id)
				return err
			})
		},
	}
}
