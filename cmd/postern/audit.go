package main

import (
	"context"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/auth/audit"
	"postern/cmd/postern/screen"
)

func (a *app) auditCmd() *cobra.Command {
	var (
		since string
		user  string
		f     audit.Filter
		who   map[int64]string
	)
	cmd := listing[audit.Entry]{
		head: []string{"WHEN", "WHO", "WHAT", "TO", "DETAIL"}, wraps: true,
		row: func(d audit.Entry) []string {
			return []string{screen.LocalTime(d.At), d.Actor, d.Action, d.ObjectText(who), screen.OrDash(d.DetailText())}
		},
		check: func() (err error) {
			f.Since, err = spanFlag("since", since)
			return err
		},
		load: func(ctx context.Context, users *accounts, _ []string, limit int) (list []audit.Entry, err error) {
			if f.Limit = limit; user != "" {
				if f.User, err = auth.CanonicalName(user); err != nil {
					return nil, err
				}
			}
			if list, err = audit.List(ctx, users.pool, f); err != nil {
				return nil, err
			}
			if len(list) == 0 {
				return nil, concernsSomebody(ctx, users, f.User)
			}
			who, err = users.Names(ctx, audit.Users(list)...)
			return list, err
		},
		limit: 100, of: "lines", next: larger[audit.Entry],
	}.command(a, &cobra.Command{
		Use:   "audit",
		Short: "list what admins did, the newest first",
		Long: `Lists the changes that commands made: when, who (the operating system's user), what, and
to whom. They are recorded with the change itself, and kept for as long as audit in
[retention] of the configuration says.`,
		Args: noArguments,
	})
	fl := cmd.Flags()
	fl.StringVar(&since, "since", "", "only what was done within this `SPAN`: 7d, 2h")
	fl.StringVar(&user, "user", "", "only what concerns the user of this `NAME`, and its mail")
	fl.StringVar(&f.Actor, "actor", "", "only what this `USER` of the operating system did")
	return cmd
}

// concernsSomebody fails when the name is not a user's and never was, as far back as the
// audit goes.
func concernsSomebody(ctx context.Context, users *accounts, name string) error {
	if name == "" {
		return nil
	}
	past, err := audit.List(ctx, users.pool, audit.Filter{User: name, Limit: 1})
	if err != nil || len(past) > 0 {
		return err
	}
	_, _, err = userNamed(ctx, users.pool, name)
	return err
}
