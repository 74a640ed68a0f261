package recipients

import (
	"context"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/relay/suppression"
)

// Shell is what the commands have of the program that they are part of.
type Shell struct {
	In       io.Reader
	Out, Err io.Writer
	// With runs do on the database, in the name of who acts.
	With func(ctx context.Context, do func(ctx context.Context, pool *pgxpool.Pool, actor string) error) error
	// Noun groups verbs.
	Noun func(use, short string, verbs ...*cobra.Command) *cobra.Command
	// Invalid marks a refusal.ErrInvalid, of the commands' arguments, as a usage error.
	Invalid func(error) error
}

// verb completes a command.
func (s Shell) verb(cmd *cobra.Command) *cobra.Command {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return s.Invalid(run(cmd, args)) }
	return cmd
}

// some requires at least so many arguments.
func some(least int, what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least {
			return refusal.Invalid("'%s' needs %s", cmd.CommandPath(), what)
		}
		return nil
	}
}

// whose are the flags that choose the owner of entries.
type whose struct {
	user   string
	global bool
}

func (w *whose) flags(cmd *cobra.Command, needed bool) {
	cmd.Flags().StringVar(&w.user, "user", "", "`NAME` of the user whose entries they are")
	cmd.Flags().BoolVar(&w.global, "global", false, "entries of all users")
	cmd.MarkFlagsMutuallyExclusive("user", "global")
	if needed {
		cmd.MarkFlagsOneRequired("user", "global")
	}
}

// owner finds the user. Errors: auth.ErrName, ErrNotFound, or the database's.
func (w *whose) owner(ctx context.Context, pool *pgxpool.Pool) (suppression.Owner, error) {
	if w.user == "" {
		return suppression.Owner{}, nil
	}
	u, err := auth.NewStore(pool).User(ctx, w.user)
	return suppression.Owner{UserID: u.ID, Name: u.Name}, err
}

// to names whose entries they are, for people.
func to(o suppression.Owner) string {
	if o.UserID == 0 {
		return "all users"
	}
	return screen.Printable(o.Name)
}

// credentialID reads the number of a credential, "" is none.
func credentialID(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	id, err := strconv.ParseInt(text, 10, 64)
	if err != nil || id <= 0 {
		return 0, refusal.Invalid("%q is not the number of a credential: see 'postern credential list USER'", text)
	}
	return id, nil
}
