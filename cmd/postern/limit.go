package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/screen"
	"postern/policy"
	"postern/relay/queue"
	"postern/relay/queue/desk"
	"postern/relay/submission"
)

func (a *app) limitCmd() *cobra.Command {
	return noun("limit", "how much users may send",
		a.limitSetCmd(), a.limitShowCmd(), a.limitResetCmd())
}

// limitFlags are the kinds of limits as flags, in the order of the help.
var limitFlags = []struct {
	flag string
	kind auth.LimitKind
	help string
}{
	{"messages", auth.LimitMessages, "messages over time, such as `100/m,1000/d`"},
	{"recipients", auth.LimitRecipients, "recipients over time, such as `5000/d`"},
	{"bytes", auth.LimitBytes, "octets over time, such as `1GB/d`"},
	{"size", auth.LimitSize, "octets of one message, such as `25MB`"},
	{"recipients-per-message", auth.LimitRecipientsPerMessage, "recipients of one message, such as `100`"},
	{"sessions", auth.LimitSessions, "sessions at once, such as `10`"},
}

func limitFlag(kind auth.LimitKind) string {
	for _, f := range limitFlags {
		if f.kind == kind {
			return f.flag
		}
	}
	return string(kind)
}

// limitTarget is whom a command about limits is for.
type limitTarget struct {
	all        bool
	credential string
}

func (t *limitTarget) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.all, "default", false, "the limits of all users")
	cmd.Flags().StringVar(&t.credential, "credential", "", "the limits of what comes by the credential `ID`")
}

// args takes a user's name at most, and it or a flag.
func (t *limitTarget) args(cmd *cobra.Command, args []string) error {
	chosen := len(args)
	if t.all {
		chosen++
	}
	if t.credential != "" {
		chosen++
	}
	switch {
	case chosen == 0:
		return usagef("'%s' needs one of: a user's name, --default, --credential ID", cmd.CommandPath())
	case chosen > 1 && chosen == len(args):
		return usagef("'%s' takes one name, not %d", cmd.CommandPath(), len(args))
	case chosen > 1:
		return usagef("'%s' takes only one of: a user's name, --default, --credential ID", cmd.CommandPath())
	}
	return nil
}

func (t *limitTarget) target(args []string) (auth.LimitTarget, error) {
	switch {
	case t.all:
		return auth.LimitTarget{Default: true}, nil
	case t.credential != "":
		id, err := parseCredential(t.credential)
		return auth.LimitTarget{Credential: id}, err
	}
	if _, err := auth.CanonicalName(args[0]); err != nil {
		return auth.LimitTarget{}, usageError{err.Error()}
	}
	return auth.LimitTarget{User: args[0]}, nil
}

func targetText(t auth.LimitTarget) string {
	switch {
	case t.Default:
		return "all users"
	case t.Credential != 0:
		return "credential " + strconv.FormatInt(t.Credential, 10)
	}
	return "user " + screen.Printable(t.User)
}

func (a *app) limitSetCmd() *cobra.Command {
	var (
		whom                 limitTarget
		values               = map[auth.LimitKind]*string{}
		noDefaults, defaults bool
	)
	cmd := &cobra.Command{
		Use:   "set USER|--default|--credential ID",
		Short: "limit what may be sent",
		Long: `Sets limits for a user, for all users (--default), or for what comes by one credential.
All that are set hold at once, and the tightest wins; what is given replaces the limits
of the same kind that were set there before.

Limits over time are an amount and a window of s, m, h or d, several of them with
commas: 100/m,1000/d,20000/30d. 0 allows none. They count from when they are set, over
all nodes. --no-defaults frees a user of the limits of all users, --defaults ends that.`,
		Example: `  postern limit set --default --messages 100/m,2000/d --recipients 5000/d
  postern limit set alice@example.com --size 25MB --bytes 1GB/d
  postern limit set --credential 12 --messages 10/m`,
		Args: whom.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := whom.target(args)
			if err != nil {
				return err
			}
			limits, err := parseLimits(cmd, values)
			if err != nil {
				return err
			}
			switch {
			case defaults && noDefaults:
				return usagef("give --defaults or --no-defaults, not both")
			case (defaults || noDefaults) && target.User == "":
				return usagef("--defaults and --no-defaults are for a user")
			case len(limits) == 0 && !defaults && !noDefaults:
				return usagef("'%s' needs a limit: --messages, --recipients, --bytes, --size, --recipients-per-message or --sessions", cmd.CommandPath())
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				err := users.together(ctx, func(store *auth.Store, _ *desk.Admin) ([]int64, error) {
					if len(limits) > 0 {
						if err := store.SetLimits(ctx, target, limits); err != nil {
							return nil, err
						}
					}
					if defaults || noDefaults {
						if err := store.SetNoDefaults(ctx, target.User, noDefaults); err != nil {
							return nil, err
						}
					}
					return concerned(ctx, store, target)
				})
				if err != nil {
					return err
				}
				if err := a.printLimitsOf(ctx, users, target, false); err != nil {
					return err
				}
				return a.tellTighter(ctx, users, target, limits)
			})
		},
	}
	whom.flags(cmd)
	f := cmd.Flags()
	for _, l := range limitFlags {
		values[l.kind] = f.String(l.flag, "", l.help)
	}
	f.BoolVar(&noDefaults, "no-defaults", false, "free the user of the limits of all users")
	f.BoolVar(&defaults, "defaults", false, "put the user under the limits of all users again")
	return cmd
}

func parseLimits(cmd *cobra.Command, values map[auth.LimitKind]*string) ([]auth.Limit, error) {
	var limits []auth.Limit
	for _, f := range limitFlags {
		if !cmd.Flags().Changed(f.flag) {
			continue
		}
		text := *values[f.kind]
		parsed, err := policy.ParseLimit(f.kind, text)
		if err != nil {
			return nil, usagef("--%s: %v", f.flag, err)
		}
		if wrong, meant, few := fewOctets(f.kind, text); few {
			return nil, usagef("--%s: %s octets? write %s", f.flag, wrong, meant)
		}
		limits = append(limits, parsed...)
	}
	return limits, nil
}

// fewOctets finds a limit of so few octets that somebody forgot the unit: 25 for 25MB.
func fewOctets(kind auth.LimitKind, text string) (wrong, meant string, few bool) {
	if kind != auth.LimitBytes && kind != auth.LimitSize {
		return "", "", false
	}
	for part := range strings.SplitSeq(text, ",") {
		amount, window, windowed := strings.Cut(strings.TrimSpace(part), "/")
		if n, err := strconv.ParseInt(amount, 10, 64); err != nil || n == 0 || n >= 1024 {
			continue // 0 allows none
		}
		if meant = amount + "MB"; windowed {
			meant += "/" + window
		}
		return amount, meant, true
	}
	return "", "", false
}

// tellTighter says which of the limits that were set for a user are of no use, because
// all users are under a tighter one.
func (a *app) tellTighter(ctx context.Context, users *accounts, target auth.LimitTarget, set []auth.Limit) error {
	if target.User == "" || len(set) == 0 {
		return nil
	}
	u, err := users.User(ctx, target.User)
	if err != nil {
		return err
	}
	id, err := users.Identity(ctx, u.ID, 0) // without the defaults for who is free of them
	if err != nil {
		return err
	}
	for _, l := range set {
		for _, other := range id.Limits {
			if other.Source != auth.FromDefault || other.Kind != l.Kind || other.Window != l.Window || other.Max >= l.Max {
				continue
			}
			_, err := fmt.Fprintf(a.stdout, "the limit of all users, %s, is tighter: --no-defaults frees the user of it\n", policy.FormatLimit(other))
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// concerned is the user whose limits changed, 0 for everybody.
func concerned(ctx context.Context, store *auth.Store, target auth.LimitTarget) ([]int64, error) {
	switch {
	case target.User != "":
		u, err := store.User(ctx, target.User)
		return []int64{u.ID}, err
	case target.Credential != 0:
		c, err := store.Credential(ctx, target.Credential)
		return []int64{c.UserID}, err
	}
	return []int64{0}, nil
}

func (a *app) limitResetCmd() *cobra.Command {
	var whom limitTarget
	kinds := map[auth.LimitKind]*bool{}
	cmd := &cobra.Command{
		Use:   "reset USER|--default|--credential ID",
		Short: "take limits away",
		Long: `Takes away the limits that are set for a user, for all users (--default), or for a
credential: those of the kinds that are named, or all. What was counted stays counted,
should a limit be set again.`,
		Example: `  postern limit reset alice@example.com
  postern limit reset --default --messages`,
		Args: whom.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := whom.target(args)
			if err != nil {
				return err
			}
			var chosen []auth.LimitKind
			for _, f := range limitFlags {
				if *kinds[f.kind] {
					chosen = append(chosen, f.kind)
				}
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if err := users.ResetLimits(ctx, target, chosen...); err != nil {
					return err
				}
				return a.printLimitsOf(ctx, users, target, false)
			})
		},
	}
	whom.flags(cmd)
	for _, f := range limitFlags {
		kinds[f.kind] = cmd.Flags().Bool(f.flag, false, "only those of "+strings.ReplaceAll(string(f.kind), "_", " "))
	}
	return cmd
}

// printLimitsOf shows what is set for the target itself.
func (a *app) printLimitsOf(ctx context.Context, users *accounts, target auth.LimitTarget, asJSON bool) error {
	limits, err := users.Limits(ctx, target)
	if err != nil {
		return err
	}
	if asJSON {
		views := []limitView{}
		for _, l := range limits {
			views = append(views, limitJSON(l))
		}
		return printJSON(a.stdout, views)
	}
	if len(limits) == 0 {
		_, err := fmt.Fprintf(a.stdout, "nothing is set for %s\n", targetText(target))
		return err
	}
	t := table{head: []string{"LIMIT OF " + targetText(target), ""}}
	for _, l := range limits {
		t.add(limitFlag(l.Kind), policy.FormatLimit(l))
	}
	return t.print(a.stdout)
}

// limitView is a limit as --json prints it.
type limitView struct {
	Kind         auth.LimitKind   `json:"kind"`
	Limit        string           `json:"limit"` // as it is written
	Max          int64            `json:"max"`
	WindowS      int64            `json:"window_s,omitempty"`
	Source       auth.LimitSource `json:"source"`
	CredentialID int64            `json:"credential_id,omitempty"`
	Tightest     *bool            `json:"tightest,omitempty"` // of those that count the same
	Used         *int64           `json:"used,omitempty"`
	Left         *int64           `json:"left,omitempty"`
}

func limitJSON(l auth.Limit) limitView {
	return limitView{Kind: l.Kind, Limit: policy.FormatLimit(l), Max: l.Max, WindowS: int64(l.Window.Seconds()), Source: l.Source}
}

func (a *app) limitShowCmd() *cobra.Command {
	var whom limitTarget
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [USER | --default | --credential ID]",
		Short: "show limits and what is used of them",
		Long: `Shows every limit that a user is under, where it was set, which of them is the tightest
and what is used of it now; those of its credentials too. Without a user, the limits of
all users.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && whom.credential == "" {
				whom.all = true
			}
			return whom.args(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := whom.target(args)
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if target.User == "" {
					return a.printLimitsOf(ctx, users, target, asJSON)
				}
				views, err := users.limitsInForce(ctx, target.User)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, views)
				}
				return a.printLimits(views)
			})
		},
	}
	whom.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// limitsInForce are the limits of a user and of its credentials that work.
func (u *accounts) limitsInForce(ctx context.Context, name string) ([]limitView, error) {
	user, err := u.User(ctx, name)
	if err != nil {
		return nil, err
	}
	credentials, err := u.Credentials(ctx, user.Name)
	if err != nil {
		return nil, err
	}
	id, err := u.Identity(ctx, user.ID, 0)
	if err != nil {
		return nil, err
	}
	ids := []int64{}
	for _, c := range credentials {
		if c.RevokedAt.IsZero() {
			ids = append(ids, c.ID)
		}
	}
	used, err := u.usage(ctx, user.ID, ids...)
	if err != nil {
		return nil, err
	}
	views := limitsOf(id, used)
	for _, c := range ids {
		if id, err = u.Identity(ctx, user.ID, c); err != nil {
			return nil, err
		}
		views = append(views, slices.DeleteFunc(limitsOf(id, used), func(v limitView) bool { return v.Source != auth.FromCredential })...)
	}
	return views, nil
}

// usage is what a user uses now.
type usage struct {
	windows  []queue.Usage
	sessions map[int64]int64 // open ones by credential
}

func (u *accounts) usage(ctx context.Context, userID int64, credentials ...int64) (used usage, err error) {
	if used.windows, err = queue.ReadUsage(ctx, u.pool, userID, credentials...); err != nil {
		return used, err
	}
	used.sessions, err = policy.OpenSessions(ctx, u.pool, userID)
	return used, err
}

// sessionsOf are the open sessions of an identity: of the user, and by the credential.
func (u usage) sessionsOf(id auth.Identity) (byUser, byCredential int64) {
	for _, n := range u.sessions {
		byUser += n
	}
	return byUser, u.sessions[id.CredentialID]
}

// of is what counts against a limit; ok is false for those of one message.
func (u usage) of(id auth.Identity, l auth.Limit) (used int64, ok bool) {
	switch {
	case l.Kind == auth.LimitSessions:
		byUser, byCredential := u.sessionsOf(id)
		if l.Source == auth.FromCredential {
			return byCredential, true
		}
		return byUser, true
	case !l.Kind.Windowed():
		return 0, false
	}
	c := submission.ChargeOf(id, l)
	for _, w := range u.windows {
		if w.Scope == c.Scope && w.Subject == c.Subject && w.Kind == c.Kind && w.Window == l.Window {
			return w.Used, true
		}
	}
	return 0, true
}

// limitsOf are all limits of an identity with their use.
func limitsOf(id auth.Identity, now usage) []limitView {
	views := []limitView{}
	windows := policy.Windows(id)
	for _, l := range id.Limits {
		v := limitJSON(l)
		if l.Source == auth.FromCredential {
			v.CredentialID = id.CredentialID
		}
		wins := slices.Contains(windows, l)
		if !l.Kind.Windowed() {
			wins = policy.Binds(id, l)
		}
		v.Tightest = &wins
		if used, ok := now.of(id, l); ok {
			left := max(0, l.Max-used)
			v.Used, v.Left = &used, &left
		}
		views = append(views, v)
	}
	return views
}

func (a *app) printLimits(views []limitView) error {
	if len(views) == 0 {
		_, err := io.WriteString(a.stdout, "there is no limit but those of the server ([submission] in the configuration)\n")
		return err
	}
	t := table{head: []string{"LIMIT", "", "SET FOR", "", "USED", "LEFT"}}
	for _, v := range views {
		source := map[auth.LimitSource]string{auth.FromDefault: "all users", auth.FromUser: "the user"}[v.Source]
		if v.Source == auth.FromCredential {
			source = fmt.Sprintf("credential %d", v.CredentialID)
		}
		wins := ""
		if *v.Tightest {
			wins = "tightest"
		}
		t.add(limitFlag(v.Kind), v.Limit, source, wins, amountOrDash(v.Kind, v.Used), amountOrDash(v.Kind, v.Left))
	}
	return t.print(a.stdout)
}

// amountOrDash is a number of messages, recipients or sessions, or octets in a unit.
func amountOrDash(kind auth.LimitKind, n *int64) string {
	switch {
	case n == nil:
		return "-"
	case kind == auth.LimitBytes && *n > 0:
		return octetsText(*n)
	}
	return strconv.FormatInt(*n, 10)
}
