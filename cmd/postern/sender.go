package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/relay/queue"
)

func (a *app) senderCmd() *cobra.Command {
	return noun("sender", "which addresses a user may send as",
		a.senderChangeCmd("allow", "let a user send as more addresses", (*auth.Store).AddSender),
		a.senderChangeCmd("deny", "take addresses away that a user may send as", (*auth.Store).RemoveSender),
		a.senderListCmd())
}

const patternsHelp = `A pattern is an address, *@domain for all of a domain, *@*.domain for all of its
subdomains, or '<>' for the null sender of bounces. The patterns hold for MAIL FROM and
for the From and Sender fields, but for '<>', which is for MAIL FROM alone. A user
without a pattern for addresses may send as its own name.

All nodes go by the change within 2 seconds, open sessions too.`

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
				err := users.together(ctx, func(store *auth.Store, _ *queue.Admin) (_ []int64, err error) {
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
				_, err = fmt.Fprintf(a.stdout, "user %s may send as %s\n", printable(u.Name), printable(sendersText(u)))
				return err
			})
		},
	}
}

func (a *app) senderListCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list USER",
		Short: "list what a user may send as",
		Long:  "Lists the patterns of the user, or its name when it may send as that alone.\n\n" + patternsHelp,
		Args:  one("name", "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				u, err := users.User(ctx, args[0])
				if err != nil {
					return err
				}
				senders := effectiveSenders(u)
				if asJSON {
					return printJSON(a.stdout, senders)
				}
				t := table{head: []string{"PATTERN", "FROM"}}
				for _, p := range senders {
					from := "set"
					if !slices.Contains(u.Senders, p) {
						from = "the user's name"
					}
					t.add(p, from)
				}
				return t.print(a.stdout)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
