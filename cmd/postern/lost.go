package main

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
)

func (a *app) queueLostCmd() *cobra.Command {
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "lost",
		Short: "list the notices that were lost, the latest first",
		Long: `Lists the notices that ended without having been delivered: their servers refused
them, their lifetime ended, or they were cancelled. Each is about a message whose
sender has not been told what became of it; 'postern trace' of that message says what
the sender would have read. They are known for as long as [queue] history says.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			return a.withQueue(cmd.Context(), func(ctx context.Context, _ *pgxpool.Pool, q *desk.Admin) error {
				list, err := q.Lost(ctx, limit)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				return a.printLost(list, limit)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().IntVar(&limit, "limit", 100, "print at most `N` notices")
	return cmd
}

func (a *app) printLost(list []desk.NoticeEnd, limit int) error {
	t := table{head: []string{"LOST", "NOTICE", "KIND", "REASON", "TO", "ABOUT", "LAST REPLY"}}
	for _, n := range list {
		lost := "-"
		if n.LostAt != nil {
			lost = screen.LocalTime(*n.LostAt)
		}
		t.add(lost, n.ID.String(), string(n.Kind), string(n.Lost), "<"+n.To+">", n.About.String(), screen.OrDash(shorten(n.Reply, 80)))
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(list) == limit {
		fmt.Fprintf(a.stderr, "there may be more: --limit %d\n", limit*10)
	}
	return nil
}
