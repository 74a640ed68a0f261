package main

import (
	"context"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
)

func (a *app) queueLostCmd() *cobra.Command {
	return listing[desk.NoticeEnd]{
		head: []string{"LOST", "NOTICE", "KIND", "REASON", "TO", "ABOUT", "LAST REPLY"},
		row: func(n desk.NoticeEnd) []string {
			return []string{screen.Moment(n.LostAt), n.ID.String(), string(n.Kind), string(n.Lost), "<" + n.To + ">",
				n.About.String(), screen.OrDash(n.Reply)}
		},
		load: func(ctx context.Context, users *accounts, _ []string, limit int) ([]desk.NoticeEnd, error) {
			return users.queue().Lost(ctx, limit)
		},
		limit: 100, of: "notices", next: larger[desk.NoticeEnd],
	}.command(a, &cobra.Command{
		Use:   "lost",
		Short: "list the notices that were lost, the newest first",
		Long: `Lists the notices that ended without having been delivered: their servers rejected
them, their lifetime ended, or they were cancelled. Each is about a message whose
sender was never notified of its failure; 'postern trace' of that message shows what
the notice reported. They are listed for as long as queue.history says.`,
		Args: noArguments,
	})
}
