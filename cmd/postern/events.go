package main

import (
	"context"

	"github.com/spf13/cobra"

	"postern/cmd/postern/events"
)

func (a *app) eventsCmd() *cobra.Command {
	l := &events.Listing{Out: a.stdout, Warn: a.warn}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "print what became of mail, in the order of a feed",
		Long: `Prints events, each at least once and in an order that does not change: what became of each
message and recipient, what admins did, and what happened to upstreams and limits. It begins
with the oldest event that is kept or, with --follow, now.

--json prints one object on each line; go on behind the last one that you have handled by
its cursor. After a restart or restore of the database some events come again, with the
same id.`,
		Example: `  postern events --user alice@example.com --kind failed --since 1d
  postern events --json --limit 1000 --after "$cursor"
  postern events --json --follow`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.Check(); err != nil {
				return usageError{err.Error()}
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error { return l.Print(ctx, users.pool) })
		},
	}
	l.Flags(cmd)
	return cmd
}
