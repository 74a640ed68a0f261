package events

import (
	"context"
	"errors"
	"io"
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

// KindFlag gives a command the flag --kind, about what it chooses: KindsOf reads its values.
func KindFlag(cmd *cobra.Command, names *[]string, what string) {
	all := screen.Each(feed.Kinds(), func(k feed.Kind) string { return string(k) })
	cmd.Flags().StringSliceVar(names, "kind", nil, what+" of this `KIND`; may be repeated: "+strings.Join(all, ", "))
	_ = cmd.RegisterFlagCompletionFunc("kind", cobra.FixedCompletions(all, cobra.ShellCompDirectiveNoFileComp))
}

// KindsOf reads the values of --kind. Errors: refusal.ErrInvalid.
func KindsOf(names []string) (kinds []feed.Kind, err error) {
	known := feed.Kinds()
	for _, name := range names {
		if !slices.Contains(known, feed.Kind(name)) {
			all := screen.Each(known, func(k feed.Kind) string { return string(k) })
			return nil, refusal.Invalid("--kind: there is no kind %q%s: use %s", name, screen.DidYouMean(name, all), strings.Join(all, ", "))
		}
		kinds = append(kinds, feed.Kind(name))
	}
	return kinds, nil
}

// flags gives a command the flags of a listing.
func (l *listing) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&l.json, "json", false, "print JSON, an object on each line")
	f.BoolVar(&l.follow, "follow", false, "wait for more")
	f.StringVar(&l.typed.after, "after", "", "go on behind the event with this `CURSOR`")
	f.StringVar(&l.typed.since, "since", "", "only what happened within this `SPAN`: 7d, 2h")
	f.StringVar(&l.typed.user, "user", "", "only events of the user of this `NAME`: mail, and addresses refused or suppressed")
	KindFlag(cmd, &l.typed.kinds, "only events")
	f.IntVar(&l.limit, "limit", 0, "print at most `N` events; 0 for all")
	cmd.MarkFlagsMutuallyExclusive("after", "since")
}

// check reads the flags. The error is of refusal.ErrInvalid.
func (l *listing) check() (err error) {
	if l.filter.Kinds, err = KindsOf(l.typed.kinds); err != nil {
		return err
	}
	if l.limit < 0 {
		return refusal.Invalid("--limit must be at least 1, or 0 for all")
	}
	if l.typed.after != "" {
		if l.after, err = feed.ParseCursor(l.typed.after); err != nil {
			return refusal.Invalid("--after: %q is not the cursor of an event", l.typed.after)
		}
	}
	if l.typed.span, err = units.ParseSpan(l.typed.since); l.typed.since != "" && (err != nil || l.typed.span < time.Microsecond) {
		return refusal.Invalid("--since: %q is not a span of time such as 90m, 4h or 7d", l.typed.since)
	}
	return nil
}

// find finds the user and the place to begin at.
func (l *listing) find(ctx context.Context, db pg.DB) (err error) {
	if name := l.typed.user; name != "" {
		if l.filter.UserID, err = userID(ctx, db, name); err != nil {
			return err
		}
	}
	switch {
	case l.typed.span > 0:
		l.filter.Since = time.Now().Add(-l.typed.span)
		l.after, err = feed.Before(ctx, db, l.filter.Since)
	case l.typed.after == "" && l.follow:
		l.after, err = feed.Newest(ctx, db)
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

// Command is 'postern events'. warn hears of what does not end a follower, with runs do on the database, invalid
// marks wrong flags as a usage error, and args refuses arguments.
func Command(out io.Writer, warn func(error), with func(ctx context.Context, do func(ctx context.Context, db pg.DB) error) error, invalid func(error) error, args cobra.PositionalArgs) *cobra.Command {
	l := &listing{out: out, warn: warn}
	cmd := &cobra.Command{
		Use:   "events",
		Short: "print what became of mail, in the order of a feed",
		Long: `Prints events, each at least once and in an order that does not change: what became of each
message and recipient, what admins did, and what happened to upstreams and limits. It begins
with the oldest event that is kept or, with --follow, now.

--json prints one object on each line. To resume, give --after the cursor of the last event
that you have handled. After a restart or restore of the database some events come again,
with the same id.`,
		Example: `  postern events --user alice@example.com --kind failed --since 1d
  postern events --json --limit 1000 --after "$cursor"
  postern events --json --follow`,
		Args: args,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := l.check(); err != nil {
				return invalid(err)
			}
			return with(cmd.Context(), l.print)
		},
	}
	l.flags(cmd)
	return cmd
}
