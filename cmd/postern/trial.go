package main

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/smarthost"
	"postern/cmd/postern/trial"
	"postern/internal/units"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
)

func (a *app) upstreamTestCmd() *cobra.Command {
	var from, to, timeout string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "test NAME",
		Short: "try a smarthost step by step, without sending mail",
		Long: `Connects to a smarthost from this machine as a node would: DNS, connection, TLS, access
token, login. With --from and --to also tries this sender and recipient, then resets; no
message is sent. Each step is shown with its time, and a failed one with its remedy. A
paused smarthost is tried as well. If its budget limits sessions, the test uses one of
them, and waits up to a third of --timeout for it. The exit status is 1 when mail could
not be sent.`,
		Example: `  postern upstream test m365
  postern upstream test m365 --from alice@example.com --to bob@example.net`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := trialOf(cmd, from, to, timeout)
			if err != nil {
				return err
			}
			c.Source, c.Upstream = a.source, args[0]
			if !asJSON {
				c.Out = a.stdout
			}
			var result *trial.Result
			err = a.withPool(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool) (err error) {
				c.Pool = pool
				breakers, err := breaker.List(ctx, pool)
				if err != nil {
					return err
				}
				c.Title = func(up upstream.Account, listed upstream.Listed) string {
					u := smarthost.Upstream{Listed: listed, Breaker: breakers.Of(up.Name)}
					return fmt.Sprintf("%s, account %s, %s", smarthost.Text(up), screen.OrDash(up.Username), u.State())
				}
				result, err = trial.Run(ctx, c)
				return err
			})
			if asJSON && result != nil {
				if err := screen.JSON(a.stdout, result); err != nil {
					return err
				}
			}
			return err
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "also try this `ADDRESS`; with --to")
	cmd.Flags().StringVar(&to, "to", "", "also try this `ADDRESS`; with --from")
	cmd.Flags().StringVar(&timeout, "timeout", "30s", "`TIME` that the whole test may take")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// trialOf reads the flags.
func trialOf(cmd *cobra.Command, from, to, timeout string) (c trial.Config, err error) {
	if c.Most, err = units.ParseSpan(timeout); err != nil || c.Most < time.Second || c.Most > time.Hour {
		return c, usagef("--timeout: %q is not a time between 1s and 1h", timeout)
	}
	given := cmd.Flags().Changed
	if given("from") != given("to") {
		return c, usagef("--from and --to go together")
	}
	if c.Mail.Rehearse = given("to"); !c.Mail.Rehearse {
		return c, nil
	}
	if from != "" { // else the null sender of notices
		if c.Mail.From, err = smtp.ParseAddress(from); err != nil {
			return c, usagef("--from: %v", err)
		}
	}
	if c.Mail.To, err = smtp.ParseRecipient(to); err != nil {
		return c, usagef("--to: %v", err)
	}
	return c, nil
}
