package recipients

import (
	"context"
	"fmt"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
)

// Recipient is 'postern recipient'.
func (s Shell) Recipient() *cobra.Command {
	return s.Noun("recipient", "manage the addresses that a user may write to",
		s.change("allow", "let a user write to these addresses only", `Where a user, or one of its credentials, has an allowed pattern, a recipient that matches none
is refused; '*@example.com' makes a printer write to its own domain only.`,
			func(ctx context.Context, store *auth.Store, user string, credential int64, patterns []string) error {
				return store.SetRecipients(ctx, user, credential, true, patterns...)
			}),
		s.change("deny", "refuse a user's mail to addresses", "A recipient that matches a denied pattern is refused, whatever is allowed.",
			func(ctx context.Context, store *auth.Store, user string, credential int64, patterns []string) error {
				return store.SetRecipients(ctx, user, credential, false, patterns...)
			}),
		s.change("remove", "remove patterns, allowed or denied", "If one is not there, nothing is changed.",
			func(ctx context.Context, store *auth.Store, user string, credential int64, patterns []string) error {
				return store.RemoveRecipients(ctx, user, credential, patterns...)
			}),
		s.verb(s.patterns()))
}

func (s Shell) change(verb, short, about string, change func(context.Context, *auth.Store, string, int64, []string) error) *cobra.Command {
	var credential string
	cmd := &cobra.Command{
		Use:   verb + " USER PATTERN...",
		Short: short,
		Long: about + `

A pattern is an address, '*@example.com' or '*@*.example.com' for all domains below it. With
--credential it is for mail sent with that credential; the user's patterns apply to it
too. Running sessions follow from their next message, on every node within 2 seconds.`,
		Example: "  postern recipient " + verb + " printer@example.com '*@example.com'",
		Args:    some(2, "a user's name and a pattern"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := credentialID(credential)
			if err != nil {
				return err
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				store := auth.NewStore(pool).As(actor)
				if err := change(ctx, store, args[0], id, args[1:]); err != nil {
					return err
				}
				list, err := store.Recipients(ctx, args[0])
				if err != nil {
					return err
				}
				return printPatterns(s.Out, list)
			})
		},
	}
	cmd.Flags().StringVar(&credential, "credential", "", "`ID` of the credential that they are for")
	return s.verb(cmd)
}

func (s Shell) patterns() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list USER",
		Short: "list the addresses that a user may or may not write to",
		Args:  some(1, "the user's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return refusal.Invalid("'%s' takes one name, not %d", cmd.CommandPath(), len(args))
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, _ string) error {
				list, err := auth.NewStore(pool).Recipients(ctx, args[0])
				switch {
				case err != nil:
					return err
				case asJSON:
					return screen.JSON(s.Out, append([]auth.RecipientPattern{}, list...))
				}
				return printPatterns(s.Out, list)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printPatterns(out io.Writer, list []auth.RecipientPattern) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(out, "no patterns: any recipient is allowed")
		return err
	}
	t := screen.TableOf([]string{"MAIL BY", "RECIPIENTS", "PATTERN"}, func(p auth.RecipientPattern) []string {
		by, what := "any credential", "denied"
		if p.Credential != 0 {
			by = "credential " + strconv.FormatInt(p.Credential, 10)
		}
		if p.Allow {
			what = "allowed"
		}
		return []string{by, what, p.Pattern}
	}, list)
	return t.Print(out)
}
