package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/screen"
)

func (a *app) userImportCmd() *cobra.Command {
	var dryRun, asJSON bool
	cmd := &cobra.Command{
		Use:   "import FILE|-",
		Short: "add the users of a CSV file, all or none",
		Long: `Adds many users. The first line of FILE (- is standard input) names the
columns, in any order:

  name      what the user logs in with; required
  password  in clear, or
  hash      of the password: bcrypt, or argon2id in PHC form; it is replaced at
            the next login if it costs less than Postern's own
  senders   patterns as for 'user add --sender', separated by spaces
  resend    further patterns, as added by 'sender allow --resend'

All lines are checked before anything is changed; the errors of the first twenty wrong
lines are reported. --dry-run only checks. Each password in clear takes about 40 ms of
a core.`,
		Example: `  postern user import users.csv --dry-run
  postern user import users.csv`,
		Args: one("file", "a file, or - for standard input"),
		RunE: func(cmd *cobra.Command, args []string) error {
			list, wrong, err := a.readImport(args[0])
			if err != nil {
				return err
			}
			err = a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if wrong != nil {
					taken, err := users.Taken(ctx, list)
					wrong = wrong.And(taken)
					return err
				}
				n, err := users.Import(ctx, list, dryRun)
				if errors.As(err, &wrong) {
					return nil
				}
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, map[string]any{"users": n, "added": !dryRun})
				}
				if dryRun {
					_, err = fmt.Fprintf(a.stdout, "%s could be added; nothing is changed\n", screen.Count(n, "user"))
				} else {
					_, err = fmt.Fprintf(a.stdout, "added %s\n", screen.Count(n, "user"))
				}
				return err
			})
			refused := a.refuseImport(wrong) // that much is known without a database
			if err != nil {
				return err
			}
			return refused
		},
	}
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only check")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// readImport reads a file of users; wrong is what is wrong with some of its lines.
func (a *app) readImport(path string) (list []auth.ImportUser, wrong *auth.ImportError, err error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, nil, err
		}
		defer f.Close()
		in = f
	}
	list, err = auth.ParseImport(in)
	switch {
	case errors.As(err, &wrong):
		return list, wrong, nil
	case err != nil:
		return nil, nil, fmt.Errorf("%w; nothing is changed", err)
	}
	a.warnOfUsers(list)
	return list, nil, nil
}

// refuseImport tells what is wrong, each on a line, if anything is.
func (a *app) refuseImport(wrong *auth.ImportError) error {
	if wrong == nil {
		return nil
	}
	for _, l := range wrong.Lines {
		fmt.Fprintln(a.stderr, screen.OneLine(screen.Printable(l.Error())))
	}
	return fmt.Errorf("%w: %s; nothing is changed", auth.ErrImport, screen.Count(len(wrong.Lines), "error"))
}

func (a *app) warnOfUsers(list []auth.ImportUser) {
	a.warnOfNames(screen.Each(list, func(u auth.ImportUser) string { return u.Name })...)
	short, none := 0, 0
	for _, u := range list {
		switch {
		case u.Hash != "":
		case u.Password == "":
			none++
		case utf8.RuneCountInString(u.Password) < shortPassword:
			short++
		}
	}
	if short > 0 {
		fmt.Fprintf(a.stderr, "warning: %s of fewer than %d characters: easy to guess\n", screen.Count(short, "password"), shortPassword)
	}
	if none > 0 {
		fmt.Fprintf(a.stderr, "warning: %s without a password or hash: they can log in after 'user passwd' or 'credential add'\n", screen.Count(none, "user"))
	}
}
