package events

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/internal/pg"
	"postern/internal/refusal"
	"postern/internal/units"
	"postern/relay/feed"
)

// flags are the listing's as they were typed.
type flags struct {
	after, since, user string
	kinds              []string
	span               time.Duration // since
}

// Flags gives a command the flags of a listing.
func (l *Listing) Flags(cmd *cobra.Command) {
	kinds := screen.Each(feed.Kinds(), func(k feed.Kind) string { return string(k) })
	f := cmd.Flags()
	f.BoolVar(&l.JSON, "json", false, "print JSON, an object on each line")
	f.BoolVar(&l.Follow, "follow", false, "wait for more")
	f.StringVar(&l.flags.after, "after", "", "go on behind the event with this `CURSOR`")
	f.StringVar(&l.flags.since, "since", "", "only what happened within this `SPAN`: 7d, 2h")
	f.StringVar(&l.flags.user, "user", "", "only events of the mail of the user of this `NAME`")
	f.StringSliceVar(&l.flags.kinds, "kind", nil, "only events of this `KIND`; may be repeated: "+strings.Join(kinds, ", "))
	f.IntVar(&l.Limit, "limit", 0, "print at most `N` events; 0 for all")
	cmd.MarkFlagsMutuallyExclusive("after", "since")
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(kinds, cobra.ShellCompDirectiveNoFileComp))
}

// Check reads the flags. The error is of refusal.ErrInvalid.
func (l *Listing) Check() (err error) {
	kinds := feed.Kinds()
	for _, name := range l.flags.kinds {
		if !slices.Contains(kinds, feed.Kind(name)) {
			names := screen.Each(kinds, func(k feed.Kind) string { return string(k) })
			return refusal.Invalid("--kind: there is no kind %q%s: use %s", name, screen.DidYouMean(name, names), strings.Join(names, ", "))
		}
		l.Filter.Kinds = append(l.Filter.Kinds, feed.Kind(name))
	}
	if l.Limit < 0 {
		return refusal.Invalid("--limit must be at least 1, or 0 for all")
	}
	if l.flags.after != "" {
		if l.After, err = feed.ParseCursor(l.flags.after); err != nil {
			return refusal.Invalid("--after: %q is not the cursor of an event", l.flags.after)
		}
	}
	if l.flags.span, err = units.ParseSpan(l.flags.since); l.flags.since != "" && (err != nil || l.flags.span < time.Microsecond) {
		return refusal.Invalid("--since: %q is not a span of time such as 90m, 4h or 7d", l.flags.since)
	}
	return nil
}

// find finds the user and the place to begin at.
func (l *Listing) find(ctx context.Context, db pg.DB) (err error) {
	if name := l.flags.user; name != "" {
		if l.Filter.UserID, err = userID(ctx, db, name); err != nil {
			return err
		}
	}
	switch {
	case l.flags.span > 0:
		l.Filter.Since = time.Now().Add(-l.flags.span)
		l.After, err = feed.Before(ctx, db, l.Filter.Since)
	case l.flags.after == "" && l.Follow:
		l.After, err = feed.Newest(ctx, db)
	}
	return err
}

// userID is the number of a user, also of one who was removed lately.
func userID(ctx context.Context, db pg.DB, name string) (int64, error) {
	canonical, err := auth.CanonicalName(name)
	if err != nil {
		return 0, err
	}
	u, err := auth.NewStore(db).User(ctx, canonical)
	if !errors.Is(err, auth.ErrNotFound) {
		return u.ID, err
	}
	id, err := feed.FormerUser(ctx, db, canonical)
	if errors.Is(err, feed.ErrNoUser) {
		return 0, refusal.NotFound("no user is named %q: see 'postern user list'", name)
	}
	return id, err
}

// Command is 'postern events'. with runs do on the database; invalid marks wrong flags as wrong use, and args
// refuses arguments.
func (l *Listing) Command(with func(ctx context.Context, do func(ctx context.Context, db pg.DB) error) error, invalid func(error) error, args cobra.PositionalArgs) *cobra.Command {
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
		Args: args,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.Check(); err != nil {
				return invalid(err)
			}
			return with(cmd.Context(), l.Print)
		},
	}
	l.Flags(cmd)
	return cmd
}
