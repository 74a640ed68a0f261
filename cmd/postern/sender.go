package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/account"
	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
)

func (a *app) senderCmd() *cobra.Command {
	return noun("sender", "manage the addresses that a user may send as",
		a.senderAllowCmd(),
		a.senderChangeCmd("deny", "remove addresses that a user may send as", (*auth.Store).RemoveSender),
		a.senderListCmd())
}

// senderAllowCmd is the change that has an option.
func (a *app) senderAllowCmd() (cmd *cobra.Command) {
	var resend bool
	cmd = a.senderChangeCmd("allow", "let a user send as more addresses",
		func(store *auth.Store, ctx context.Context, name, pattern string) error {
			if !cmd.Flags().Changed("resend") {
				return store.AddSender(ctx, name, pattern)
			}
			return store.SetResend(ctx, name, pattern, resend)
		})
	cmd.Flags().BoolVar(&resend, "resend", false, "also redirect others' mail as these addresses; --resend=false ends that")
	cmd.Long += "\n\n" + resendHelp
	cmd.Example += "\n  postern sender allow office@example.com office@example.com --resend"
	return cmd
}

const resendHelp = `With --resend the user may also redirect mail as these addresses: a message may have
someone else's From and Sender if they match its first Resent-From (and Resent-Sender).
Existing patterns get the option, or lose it with --resend=false.`

const patternsHelp = `A pattern is an address, *@domain for all of a domain, *@*.domain for all of its
subdomains, or '<>' for the null sender of bounces. The patterns apply to MAIL FROM and
to the From and Sender fields, '<>' to MAIL FROM alone. A user without a pattern for
addresses may send only as its own name.

The change applies on all nodes within 2 seconds, to open sessions too.`

// senderChangeCmd makes a command that does something with patterns, all or none.
func (a *app) senderChangeCmd(verb, short string, do func(*auth.Store, context.Context, string, string) error) *cobra.Command {
	long := "Adds patterns to those of the user.\n\n" + patternsHelp
	if verb == "deny" {
		long = "Removes patterns that the user has, as 'sender list' shows them.\n\n" + patternsHelp
	}
	return &cobra.Command{
		Use:     verb + " USER PATTERN...",
		Short:   short,
		Long:    long,
		Example: fmt.Sprintf("  postern sender %s alice@example.com '*@example.com' '*@*.example.com'", verb),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return usagef("'%s' needs the user's name and one or more patterns", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			for _, p := range args[1:] {
				if _, err := auth.CanonicalPattern(p); err != nil {
					return usageError{err.Error()}
				}
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				var u auth.User
				err := users.together(ctx, func(store *auth.Store, _ *desk.Admin) (_ []int64, err error) {
					for _, p := range args[1:] {
						if err := do(store, ctx, args[0], p); err != nil {
							return nil, err
						}
					}
					u, err = store.User(ctx, args[0])
					return []int64{u.ID}, err
				})
				if err != nil {
					return err
				}
				fmt.Fprintf(a.stdout, "user %s may send as %s\n", screen.Printable(u.Name), screen.Printable(account.SendersText(u)))
				if verb == "allow" && len(u.Resend) > 0 {
					fmt.Fprintf(a.stdout, "and may resend others' mail as %s\n", screen.Printable(strings.Join(u.Resend, ", ")))
				}
				return nil
			})
		},
	}
}

func (a *app) senderListCmd() *cobra.Command {
	return listing[account.Sender]{
		head: []string{"PATTERN", "ORIGIN", "RESEND"},
		row: func(s account.Sender) []string {
			resend := "-"
			if s.Resend {
				resend = "yes"
			}
			return []string{s.Pattern, s.From, resend}
		},
		load: func(ctx context.Context, users *accounts, args []string, _ int) ([]account.Sender, error) {
			u, err := users.User(ctx, args[0])
			return account.SendersOf(u), err
		},
	}.command(a, &cobra.Command{
		Use:   "list USER",
		Short: "list what a user may send as",
		Long: `Lists the patterns of the user, or its name when it may send as that alone: ORIGIN is
"set" or "the user's name".

` + patternsHelp,
		Args: one("name", "the user's name"),
	})
}
