package main

import (
	"context"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
)

func (a *app) queueShapeCmd() *cobra.Command {
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "shape",
		Short: "show for each destination how much waits, and for how long",
		Long: `Shows the domains with the most recipients that are not finished, and how many of
them were accepted within 5 minutes, 15 minutes, an hour, 4 hours, a day, and
earlier. A destination in trouble grows to the right; a thief's mail is broad and
stands at the left.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			return a.withQueue(cmd.Context(), func(ctx context.Context, _ *pgxpool.Pool, q *desk.Admin) error {
				list, err := q.Shape(ctx, limit)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				return a.printShape(list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().IntVar(&limit, "limit", 20, "show at most `N` domains")
	return cmd
}

func (a *app) printShape(list []desk.Shape) error {
	t := table{head: []string{"DOMAIN", "5m", "15m", "1h", "4h", "1d", "OLDER", "HELD", "TOTAL", "SIZE", "LAST REPLY"}}
	number := func(n int64) string { return strconv.FormatInt(n, 10) }
	for _, s := range list {
		cells := []string{s.Domain}
		for _, n := range s.Ages {
			cells = append(cells, number(n))
		}
		t.add(append(cells, number(s.Held), number(s.Total), octetsText(s.Octets), screen.OrDash(shorten(s.LastErr, 60)))...)
	}
	return t.print(a.stdout)
}
