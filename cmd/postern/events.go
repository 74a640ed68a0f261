package main

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/events"
	"postern/cmd/postern/screen"
	"postern/relay/feed"
)

func (a *app) eventsCmd() *cobra.Command {
	var after, since, user string
	var kinds []string
	l := events.Listing{Out: a.stdout, Warn: a.warn}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "print what became of mail, in the order of a feed",
		Long: `Prints events, each at least once and in an order that does not change: what became of each
message and recipient, what admins did, and what happened to upstreams and limits. It begins
with the oldest event that is kept or, with --follow, now.

--json prints one object on each line; go on behind the last one that you have handled by
its cursor. After a restart or restore of the database some events come again, with the
same id.`,
		Example: `  postern events --user alice@example.com --kind failed --since 1d
  postern events --json --limit 1000 --after "$cursor"
  postern events --json --follow`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			if l.Filter.Kinds, err = kindsOf(kinds); err != nil {
				return err
			}
			if l.Limit < 0 {
				return usagef("--limit must be at least 1, or 0 for all")
			}
			if after != "" {
				if l.After, err = feed.ParseCursor(after); err != nil {
					return usagef("--after: %q is not the cursor of an event", after)
				}
			}
			span, err := spanFlag("since", since)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if user != "" {
					if l.Filter.UserID, err = feed.FormerUser(ctx, users.pool, user); errors.Is(err, feed.ErrNoUser) {
						l.Filter.UserID, _, err = userNamed(ctx, users.pool, user)
					}
					if err != nil {
						return err
					}
				}
				switch {
				case span > 0:
					l.Filter.Since = time.Now().Add(-span)
					l.After, err = feed.Before(ctx, users.pool, l.Filter.Since)
				case after == "" && l.Follow:
					l.After, err = feed.Newest(ctx, users.pool)
				}
				if err != nil {
					return err
				}
				return l.Print(ctx, users.pool)
			})
		},
	}
	f := cmd.Flags()
	f.BoolVar(&l.JSON, "json", false, "print JSON, an object on each line")
	f.BoolVar(&l.Follow, "follow", false, "wait for more")
	f.StringVar(&after, "after", "", "go on behind the event with this `CURSOR`")
	f.StringVar(&since, "since", "", "only what happened within this `span`: 7d, 2h")
	f.StringVar(&user, "user", "", "only events of the mail of the user of this `NAME`")
	f.StringSliceVar(&kinds, "kind", nil, "only events of this `kind`; may be given several times: "+strings.Join(kindNames(), ","))
	f.IntVar(&l.Limit, "limit", 0, "print at most `N` events; 0 for all")
	cmd.MarkFlagsMutuallyExclusive("after", "since")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kindNames(), cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func kindNames() []string {
	return screen.Each(feed.Kinds(), func(k feed.Kind) string { return string(k) })
}

func kindsOf(names []string) (kinds []feed.Kind, err error) {
	for _, name := range names {
		if !slices.Contains(feed.Kinds(), feed.Kind(name)) {
			return nil, usagef("--kind: there is no kind %q%s: use %s", name, screen.DidYouMean(name, kindNames()), strings.Join(kindNames(), ", "))
		}
		kinds = append(kinds, feed.Kind(name))
	}
	return kinds, nil
}
