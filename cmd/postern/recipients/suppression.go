package recipients

import (
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"
	"golang.org/x/term"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/internal/units"
	"postern/relay/suppression"
)

// Suppression is 'postern suppression'.
func (s Shell) Suppression() *cobra.Command {
	return s.Noun("suppression", "manage the addresses that are sent no more mail", s.verb(s.add()), s.verb(s.list()), s.verb(s.remove()), s.verb(s.importCmd()), s.verb(s.export()))
}

func (s Shell) add() *cobra.Command {
	var of whose
	var reason, span string
	cmd := &cobra.Command{
		Use:   "add ADDRESS...",
		Short: "refuse mail to addresses",
		Long: `Refuses mail of a user, or with --global of all users, to addresses, on every node within 2
seconds. With --global an address may be a pattern: *@example.com blocks a domain, and
*@*.example.com all domains below it. An existing entry is replaced.`,
		Example: `  postern suppression add bob@example.net --user shop@example.com --reason 'asked for no more mail'
  postern suppression add '*@example.org' --global`,
		Args: some(1, "an address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var expires *time.Time
			if span != "" {
				d, err := units.ParseSpan(span)
				if err != nil || d < time.Minute {
					return refusal.Invalid("--for: %q is not a span of time of at least a minute, such as 30d", span)
				}
				at := time.Now().Add(d).Truncate(time.Second)
				expires = &at
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				o, err := of.owner(ctx, pool)
				if err != nil {
					return err
				}
				list, err := suppression.NewStore(pool, actor).Add(ctx, o, args, reason, expires)
				if err != nil {
					return err
				}
				for i := range list {
					fmt.Fprintf(s.Out, "%s is suppressed for %s\n", screen.Printable(list[i].Address), to(o))
				}
				return nil
			})
		},
	}
	of.flags(cmd, true)
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` for colleagues and, for --user, for the sender")
	cmd.Flags().StringVar(&span, "for", "", "`SPAN` that it lasts, such as 30d; without it, until it is removed")
	return cmd
}

func (s Shell) remove() *cobra.Command {
	var of whose
	cmd := &cobra.Command{
		Use:   "remove ADDRESS...",
		Short: "let mail to addresses through again",
		Long:  "Removes entries of a user, or of all users, from the suppression list. If one is not there, nothing is changed.",
		Args:  some(1, "an address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				o, err := of.owner(ctx, pool)
				if err == nil {
					err = suppression.NewStore(pool, actor).Remove(ctx, o, args)
				}
				if err == nil {
					_, err = fmt.Fprintf(s.Out, "removed %s of %s\n", entries(len(args)), to(o))
				}
				return err
			})
		},
	}
	of.flags(cmd, true)
	return cmd
}

// entries is a number of them in words.
func entries(n int) string {
	if n == 1 {
		return "1 entry"
	}
	return fmt.Sprintf("%d entries", n)
}

func (s Shell) list() *cobra.Command {
	var of whose
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "list [ADDRESS]",
		Short: "list suppressed addresses, the latest first",
		Long: `Lists the suppression list's entries of a user, or with --global those of all users, or of
an address whoever has them; without any of these, the latest entries of anybody.
'postern suppression export' writes all.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 || limit < 1 {
				return refusal.Invalid("'%s' takes one address, and --limit of at least 1", cmd.CommandPath())
			}
			address := ""
			if len(args) > 0 {
				var err error
				if address, err = suppression.ParseKey(args[0], true); err != nil {
					return err
				}
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				o, err := of.owner(ctx, pool)
				if err != nil {
					return err
				}
				list, err := suppression.NewStore(pool, actor).List(ctx, o, of.user == "" && !of.global, address, limit)
				if err == nil {
					err = named(ctx, pool, list)
				}
				switch {
				case err != nil:
					return err
				case asJSON:
					return screen.JSON(s.Out, append([]suppression.Entry{}, list...))
				}
				t := screen.TableOf([]string{"ADDRESS", "USER", "SINCE", "UNTIL", "HITS", "WHY"}, row, list)
				t.Spare, t.Wraps = []string{"HITS", "SINCE"}, true
				if err := t.Print(s.Out); err != nil {
					return err
				}
				if len(list) == limit {
					fmt.Fprintf(s.Err, "there may be more: --limit %d\n", limit*10)
				}
				return nil
			})
		},
	}
	of.flags(cmd, false)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().IntVar(&limit, "limit", 50, "print at most `N` entries")
	return cmd
}

// named gives entries the names of their users.
func named(ctx context.Context, pool *pgxpool.Pool, list []suppression.Entry) error {
	var ids []int64
	for i := range list {
		ids = append(ids, list[i].UserID)
	}
	names, err := auth.NewStore(pool).Names(ctx, ids...)
	for i := range list {
		list[i].User = names[list[i].UserID]
	}
	return err
}

func row(e suppression.Entry) []string {
	of, until, why := e.User, "removed", e.Reason
	switch {
	case e.UserID == 0:
		of = "all users"
	case of == "":
		of = "user " + strconv.FormatInt(e.UserID, 10)
	}
	if e.ExpiresAt != nil {
		until = screen.LocalTime(*e.ExpiresAt)
	}
	if e.Source == suppression.Bounce {
		why = "bounced: " + e.Reply
	}
	return []string{e.Address, of, screen.LocalTime(e.AddedAt), until, strconv.FormatInt(e.Hits, 10), screen.OrDash(why)}
}

func (s Shell) importCmd() *cobra.Command {
	var of whose
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "add entries from a CSV file",
		Long: `Adds the entries of a CSV file, or of the standard input for '-', to those of a user or of all
users. The first line names the columns: address, and optionally reason, expires and added (RFC
3339), source (bounce or admin) and reply. Existing entries are replaced. If a line is wrong,
nothing is changed. An import that was interrupted can be repeated.`,
		Args: some(1, "a file"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return refusal.Invalid("'%s' takes one file, not %d", cmd.CommandPath(), len(args))
			}
			in := s.In
			if args[0] != "-" {
				f, err := os.Open(args[0])
				if err != nil {
					return err
				}
				defer f.Close()
				in = f
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				o, err := of.owner(ctx, pool)
				if err != nil {
					return err
				}
				list, err := suppression.ParseCSV(in, o)
				if err != nil {
					return err
				}
				bar := s.progress("imported", len(list))
				if err := suppression.NewStore(pool, actor).Import(ctx, o, list, bar.done); err != nil {
					return err
				}
				bar.end()
				_, err = fmt.Fprintf(s.Out, "imported %s for %s\n", entries(len(list)), to(o))
				return err
			})
		},
	}
	of.flags(cmd, true)
	return cmd
}

func (s Shell) export() *cobra.Command {
	var of whose
	cmd := &cobra.Command{
		Use:   "export",
		Short: "write entries as a CSV file",
		Long:  "Writes the entries of a user, or of all users, to the standard output, as 'postern suppression import' reads them.",
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return refusal.Invalid("'%s' takes only flags, not %q", cmd.CommandPath(), args[0])
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				o, err := of.owner(ctx, pool)
				if err != nil {
					return err
				}
				store := suppression.NewStore(pool, actor)
				n, err := store.Count(ctx, o)
				if err != nil {
					return err
				}
				w, err := suppression.NewWriter(s.Out)
				if err != nil {
					return err
				}
				written, bar := 0, s.progress("exported", n)
				err = store.Each(ctx, o, func(list []suppression.Entry) error {
					written += len(list)
					bar.done(written)
					return w.Write(list)
				})
				bar.end()
				return err
			})
		},
	}
	of.flags(cmd, true)
	return cmd
}

// progress is a line that is written over and over, on a terminal only.
type progress struct {
	out   io.Writer // nil: none
	what  string
	total int
	shown time.Time
}

func (s Shell) progress(what string, total int) *progress {
	p := &progress{what: what, total: total}
	if f, ok := terminalOf(s.Err); ok && term.IsTerminal(int(f.Fd())) {
		p.out = f
	}
	return p
}

func terminalOf(w io.Writer) (*os.File, bool) {
	if s, ok := w.(screen.Writer); ok {
		w = s.Writer
	}
	f, ok := w.(*os.File)
	return f, ok
}

// done shows how far it is, at most ten times a second.
func (p *progress) done(n int) {
	if p.out == nil || n < p.total && time.Since(p.shown) < 100*time.Millisecond {
		return
	}
	p.shown = time.Now()
	fmt.Fprintf(p.out, "\r%s %d of %d", p.what, n, p.total)
}

func (p *progress) end() {
	if p.out != nil {
		fmt.Fprintln(p.out)
	}
}
