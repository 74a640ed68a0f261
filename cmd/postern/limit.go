package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/policy/quota"
	"postern/relay/queue/desk"
)

func (a *app) limitCmd() *cobra.Command {
	return noun("limit", "manage how much users may send",
		a.limitSetCmd(), a.limitShowCmd(), a.limitResetCmd())
}

// limitHelp is the help of the flag of each kind.
var limitHelp = map[quota.Kind]string{
	quota.Messages:            "messages over time, as `LIMITS` such as 100/m,1000/d",
	quota.Recipients:          "recipients over time, as `LIMITS` such as 5000/d",
	quota.Bytes:               "bytes over time, as `LIMITS` such as 1GB/d",
	quota.Size:                "greatest `SIZE` of one message, such as 25MB",
	quota.RecipientsOfMessage: "at most `N` recipients of one message",
	quota.Sessions:            "at most `N` concurrent sessions",
}

// limitTarget is whom a command about limits is for.
type limitTarget struct {
	all        bool
	credential string
}

func (t *limitTarget) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&t.all, "default", false, "the default limits, applied to each user separately")
	cmd.Flags().StringVar(&t.credential, "credential", "", "the limits of mail sent with the credential `ID`")
}

// args takes a user's name or a domain at most, and it or a flag.
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
		return usagef("'%s' needs one of: a user's name, '*@DOMAIN', --default, --credential ID", cmd.CommandPath())
	case chosen > 1 && chosen == len(args):
		return usagef("'%s' takes one name, not %d", cmd.CommandPath(), len(args))
	case chosen > 1:
		return usagef("'%s' takes only one of: a user's name, '*@DOMAIN', --default, --credential ID", cmd.CommandPath())
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
	if domain, ok := strings.CutPrefix(args[0], "*@"); ok {
		return auth.LimitTarget{Domain: domain}, nil
	}
	if _, err := auth.CanonicalName(args[0]); err != nil {
		return auth.LimitTarget{}, usageError{err.Error()}
	}
	return auth.LimitTarget{User: args[0]}, nil
}

func targetText(t auth.LimitTarget) string {
	switch {
	case t.Default:
		return "each user (default)"
	case t.Credential != 0:
		return "credential " + strconv.FormatInt(t.Credential, 10)
	case t.Domain != "":
		return "*@" + screen.Printable(t.Domain) + ", together"
	}
	return "user " + screen.Printable(t.User)
}

func (a *app) limitSetCmd() *cobra.Command {
	var (
		whom                 limitTarget
		values               = map[quota.Kind]*string{}
		noDefaults, defaults bool
	)
	cmd := &cobra.Command{
		Use:   "set USER|'*@DOMAIN'|--default|--credential ID",
		Short: "limit what may be sent",
		Long: `Sets limits for a user, for each user (--default), for all users of a domain together
('*@DOMAIN'), or for mail sent with one credential. All limits that are set apply, and
the tightest decides; a flag replaces all earlier limits of that kind on the same target.

A limit over time is an amount and a window in s, m, h or d; commas separate several:
100/m,1000/d,20000/30d. 0 allows nothing. Usage is counted across all nodes, from the moment
the limit is first set. --no-defaults exempts a user from the default limits; --defaults
undoes it.`,
		Example: `  postern limit set --default --messages 100/m,2000/d --recipients 5000/d
  postern limit set '*@example.com' --messages 20000/d
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
	for _, kind := range quota.Kinds() {
		values[kind] = f.String(kind.Name(), "", limitHelp[kind])
	}
	f.BoolVar(&noDefaults, "no-defaults", false, "exempt the user from the default limits")
	f.BoolVar(&defaults, "defaults", false, "put the user under the default limits again")
	return cmd
}

func parseLimits(cmd *cobra.Command, values map[quota.Kind]*string) ([]quota.Limit, error) {
	var limits []quota.Limit
	for _, kind := range quota.Kinds() {
		flag, text := kind.Name(), *values[kind]
		if !cmd.Flags().Changed(flag) {
			continue
		}
		parsed, err := quota.Parse(kind, text)
		if err != nil {
			return nil, usagef("--%s: %v", flag, err)
		}
		if wrong, meant, few := fewOctets(kind, text); few {
			return nil, usagef("--%s: %s octets? write %s", flag, wrong, meant)
		}
		limits = append(limits, parsed...)
	}
	return limits, nil
}

// fewOctets finds a limit of so few octets that somebody forgot the unit: 25 for 25MB.
func fewOctets(kind quota.Kind, text string) (wrong, meant string, few bool) {
	if kind != quota.Bytes && kind != quota.Size {
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
// the default, or that of its domain, is tighter.
func (a *app) tellTighter(ctx context.Context, users *accounts, target auth.LimitTarget, set []quota.Limit) error {
	if target.User == "" || len(set) == 0 {
		return nil
	}
	u, err := users.User(ctx, target.User)
	if err != nil {
		return err
	}
	id, err := users.Identity(ctx, u.ID, 0) // without the defaults for a user who is exempt
	if err != nil {
		return err
	}
	for _, l := range set {
		for _, other := range id.Limits {
			if other.Kind != l.Kind || other.Window != l.Window || other.Max >= l.Max {
				continue
			}
			text := "the default limit, %s, is tighter: --no-defaults exempts the user from it\n"
			if other.Scope == quota.Domain {
				text = "the limit of *@" + other.Subject + ", %s, is tighter\n"
			}
			if _, err := fmt.Fprintf(a.stdout, text, other.Text()); err != nil {
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
	kinds := map[quota.Kind]*bool{}
	cmd := &cobra.Command{
		Use:   "reset USER|'*@DOMAIN'|--default|--credential ID",
		Short: "remove limits",
		Long: `Removes the limits that are set for a user, for a domain, for each user (--default), or
for a credential. With flags such as --messages, only limits of those kinds are removed.
The counts are kept, and apply to a limit that is set again.`,
		Example: `  postern limit reset alice@example.com
  postern limit reset --default --messages`,
		Args: whom.args,
		RunE: func(cmd *cobra.Command, args []string) error {
			target, err := whom.target(args)
			if err != nil {
				return err
			}
			var chosen []quota.Kind
			for _, kind := range quota.Kinds() {
				if *kinds[kind] {
					chosen = append(chosen, kind)
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
	for _, kind := range quota.Kinds() {
		kinds[kind] = cmd.Flags().Bool(kind.Name(), false, "remove only the limits on "+strings.ReplaceAll(string(kind), "_", " "))
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
		return screen.JSON(a.stdout, screen.Each(limits, explain.LimitOf))
	}
	if len(limits) == 0 {
		_, err := fmt.Fprintf(a.stdout, "nothing is set for %s\n", targetText(target))
		return err
	}
	t := screen.Table{Head: []string{"LIMITS FOR " + targetText(target), ""}}
	for _, l := range limits {
		t.Add(l.Kind.Name(), l.Text())
	}
	return t.Print(a.stdout)
}

func (a *app) limitShowCmd() *cobra.Command {
	var whom limitTarget
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show [USER | '*@DOMAIN' | --default | --credential ID]",
		Short: "show limits and how much of them is used",
		Long: `Shows every limit that applies to a user or to its credentials: where it was set, how much
of it is used now, and which is the tightest. With '*@DOMAIN', shows the domain's limits
and how much its users have used together. Without a target, shows the default limits.`,
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
				if target.User == "" && target.Domain == "" {
					return a.printLimitsOf(ctx, users, target, asJSON)
				}
				views, err := explain.Limits(ctx, users.pool, target)
				if err != nil {
					return err
				}
				if asJSON {
					return screen.JSON(a.stdout, views)
				}
				if len(views) == 0 && target.Domain != "" {
					return a.printLimitsOf(ctx, users, target, false)
				}
				return explain.PrintLimits(a.stdout, views)
			})
		},
	}
	whom.flags(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}
