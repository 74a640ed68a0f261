// Package alerts is 'postern alerts': it has a running node send a mail about what is wrong.
package alerts

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/relay/alert"
)

// patience is how long 'alerts test' waits for a node: they look every five seconds.
const patience = 20 * time.Second

// Command is 'postern alerts'. with runs do on the database; noun groups verbs, and none
// refuses arguments.
func Command(out io.Writer, with func(ctx context.Context, do func(ctx context.Context, pool *pgxpool.Pool, actor string) error) error,
	noun func(use, short string, verbs ...*cobra.Command) *cobra.Command, none cobra.PositionalArgs) *cobra.Command {
	return noun("alerts", "try the alerts that are sent by mail", &cobra.Command{
		Use:   "test",
		Short: "send a mail about what is wrong now",
		Long: `Makes a running node look for what is wrong now, and mail it and what the other nodes have
found to the addresses in its [alerts] section, whether or not a mail is due. 'postern
trace' with the printed id shows whether the mail was delivered.`,
		Args: none,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return with(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, _ string) error {
				id, err := alert.Test(ctx, pool, patience)
				if err == nil {
					_, err = fmt.Fprintf(out, "queued a mail as %s\n", id)
				}
				return err
			})
		},
	})
}
