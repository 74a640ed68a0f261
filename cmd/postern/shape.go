package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"github.com/spf13/cobra"

	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/smarthost"
	"postern/internal/units"
	"postern/relay/queue/desk"
	"postern/relay/upstream/breaker"
)

func (a *app) queueShapeCmd() *cobra.Command {
	return listing[desk.Shape]{
		head: []string{"DOMAIN", "5m", "15m", "1h", "4h", "1d", "OLDER", "HELD", "TOTAL", "SIZE", "LAST REPLY"}, spare: []string{"SIZE", "15m", "4h"},
		row: shapeRow,
		load: func(ctx context.Context, users *accounts, _ []string, limit int) ([]desk.Shape, error) {
			return users.queue().Shape(ctx, limit)
		},
		limit: 20, of: "domains",
		below: func(ctx context.Context, users *accounts) error {
			breakers, err := breaker.List(ctx, users.pool)
			for _, s := range breakers {
				if s.Open {
					fmt.Fprintln(a.stdout, screen.Printable("upstream "+s.Upstream+": "+explain.OpenText(&s)))
				}
			}
			if err != nil {
				return err
			}
			budgets, err := users.upstreams(nil).Budgets(ctx)
			for _, u := range budgets {
				err = errors.Join(err, smarthost.PrintWaiting(a.stdout, u))
			}
			return err
		},
	}.command(a, &cobra.Command{
		Use:   "shape",
		Short: "show for each destination how much waits, and for how long",
		Long: `Shows the domains with the most unfinished recipients, and how many of them were
accepted within 5 minutes, 15 minutes, an hour, 4 hours, a day, and earlier. The numbers
of a failing destination grow on the right; an attacker's mail goes to many domains, with
numbers on the left. Then come the upstreams whose breaker is open, and those for whose
budget mail waits.`,
		Args: noArguments,
	})
}

func shapeRow(s desk.Shape) []string {
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	cells := append([]string{s.Domain}, screen.Each(s.Ages[:], number)...)
	return append(cells, number(s.Held), number(s.Total), units.RoughOctets(s.Octets), screen.OrDash(s.LastErr))
}
