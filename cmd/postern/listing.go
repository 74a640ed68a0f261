package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
)

// listing is a command that lists something: as a table, of which --columns chooses some
// columns, or with --json.
type listing[T any] struct {
	head  []string
	spare []string // columns that a narrow terminal does without
	wraps bool     // the last column does
	row   func(T) []string
	check func() error // of the flags, before the database is asked; nil for nothing
	load  func(ctx context.Context, users *accounts, args []string, limit int) ([]T, error)
	after func(T) string // what stands below the table on a line of its own; "", or nil, for nothing

	below func(ctx context.Context, users *accounts) error // prints what stands below the table; nil for nothing

	limit int                              // the default of --limit; 0: the list is never cut
	of    string                           // what --limit counts
	next  func(list []T, limit int) string // flags that list what a cut list leaves out; nil: not said
}

// larger is the next of a list that has no place to go on from.
func larger[T any](_ []T, limit int) string { return fmt.Sprintf("--limit %d", limit*10) }

// command completes cmd.
func (l listing[T]) command(a *app, cmd *cobra.Command) *cobra.Command {
	var asJSON bool
	var columns []string
	cuts := l.limit > 0
	f := cmd.Flags()
	f.BoolVar(&asJSON, "json", false, "print JSON")
	f.StringSliceVar(&columns, "columns", nil, "print only these `COLUMNS`: "+strings.Join(columnNames(l.head), ","))
	if cuts {
		f.IntVar(&l.limit, "limit", l.limit, "print at most `N` "+l.of)
	}
	cmd.MarkFlagsMutuallyExclusive("json", "columns")
	_ = cmd.RegisterFlagCompletionFunc("columns", cobra.FixedCompletions(columnNames(l.head), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if cuts && l.limit < 1 {
			return usagef("--limit must be at least 1")
		}
		chosen, err := chooseColumns(l.head, columns)
		if err != nil {
			return err
		}
		if l.check != nil {
			if err := l.check(); err != nil {
				return err
			}
		}
		return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
			list, err := l.load(ctx, users, args, l.limit)
			if err != nil {
				return err
			}
			if asJSON {
				return screen.JSON(a.stdout, list)
			}
			t := screen.TableOf(l.head, l.row, list)
			t.Columns, t.Spare, t.Wraps = chosen, l.spare, l.wraps
			if err := t.Print(a.stdout); err != nil {
				return err
			}
			for _, one := range list {
				if l.after == nil {
					break
				}
				if text := l.after(one); text != "" {
					fmt.Fprintln(a.stdout, screen.Printable(text))
				}
			}
			if l.below != nil {
				if err := l.below(ctx, users); err != nil {
					return err
				}
			}
			if l.next != nil && len(list) == l.limit {
				fmt.Fprintf(a.stderr, "there may be more: %s\n", l.next(list, l.limit))
			}
			return nil
		})
	}
	return cmd
}

// columnNames are the columns as --columns calls them.
func columnNames(head []string) (names []string) {
	for _, h := range head {
		names = append(names, strings.ReplaceAll(strings.ToLower(h), " ", "-"))
	}
	return names
}

// chooseColumns finds the columns with these names, in this order; none for all.
func chooseColumns(head, names []string) (chosen []int, err error) {
	known := columnNames(head)
	for _, name := range names {
		i := slices.Index(known, name)
		if i < 0 {
			return nil, usagef("--columns: there is no column %q%s: use %s", name, screen.DidYouMean(name, known), strings.Join(known, ","))
		}
		chosen = append(chosen, i)
	}
	return chosen, nil
}
