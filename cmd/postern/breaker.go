package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/relay/anomaly"
)

func (a *app) breakerCmd() *cobra.Command {
	return noun("breaker", "put users on hold whose account looks stolen",
		a.breakerShowCmd(), a.breakerSetCmd())
}

// breakerView is the breaker as --json prints it; null is a sign that is off.
type breakerView struct {
	MinRecipients    int      `json:"min_recipients"`
	FirstTimeShare   *float64 `json:"first_time_share"`
	RejectedShare    *float64 `json:"rejected_share"`
	NewNetworkFactor *float64 `json:"new_network_factor"`
}

func (a *app) breakerShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "show which signs are on",
		Args:  noArguments,
		RunE: a.onUsers(func(ctx context.Context, users *accounts, _ []string) error {
			b, err := anomaly.Read(ctx, users.pool)
			if err != nil {
				return err
			}
			if asJSON {
				return printJSON(a.stdout, breakerJSON(b))
			}
			return a.printBreaker(b)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func breakerJSON(b anomaly.Signs) breakerView {
	set := func(v float64) *float64 {
		if v == 0 {
			return nil
		}
		return &v
	}
	return breakerView{b.MinRecipients, set(b.FirstTimeShare), set(b.RejectedShare), set(b.NewNetworkFactor)}
}

func (a *app) printBreaker(b anomaly.Signs) error {
	t := table{head: []string{"SIGN", "TRIPS AT", "OF"}}
	row := func(name string, v float64, of string) {
		at := "off"
		if v > 0 {
			at = strconv.FormatFloat(v, 'g', -1, 64)
		}
		t.add(name, at, of)
	}
	row("first-time-share", b.FirstTimeShare, "the recipients were never written to before")
	row("rejected-share", b.RejectedShare, "the recipients were refused for good by the next server")
	row("new-network-factor", b.NewNetworkFactor, "the user's hourly mean comes from new networks")
	t.add("min-recipients", strconv.Itoa(b.MinRecipients), "recipients at least; fewer prove nothing")
	return t.print(a.stdout)
}

func (a *app) breakerSetCmd() *cobra.Command {
	var given breakerFlags
	cmd := &cobra.Command{
		Use:   "set",
		Short: "turn signs on or off",
		Long: `Sets when a user is put on hold because the account looks stolen. All signs are off
at first. 0 or 'off' turns a sign off, and a flag that is not given leaves its sign
as it is. The current and the last clock hour count; running servers follow within
5 seconds.

  --first-time-share 0.8    8 in 10 of the recipients were never written to by the
                            user: a thief has a list of strangers. Known recipients
                            are learnt from the history, which takes a while.
  --rejected-share 0.3      3 in 10 of the recipients were refused for good by the
                            next server: the list is old, or the mail is unwanted.
  --new-network-factor 10   10 times the user's hourly mean of 14 days comes from
                            networks in which the user was not seen for 30 days.
  --min-recipients 50       fewer than 50 recipients prove nothing.

When a sign trips, the user is put on hold and the mail log says so. Mail goes
on being accepted, and is held: nothing is lost, and the thief learns nothing. Look
with 'postern queue holds' and 'postern queue list --user U'; then release it with
'postern queue release --user U', which also forgets what was counted, or delete
it with 'postern queue cancel --user U'.`,
		Example: `  postern breaker set --first-time-share 0.8 --rejected-share 0.3 --min-recipients 100
  postern breaker set --new-network-factor off
  postern queue release --user alice@example.com   # the mail was hers`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := given.changes(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			if len(changes) == 0 {
				return usagef("'%s' needs something to set: --first-time-share, --rejected-share, --new-network-factor or --min-recipients", cmd.CommandPath())
			}
			return a.setBreaker(cmd.Context(), changes)
		},
	}
	f := cmd.Flags()
	f.IntVar(&given.least, "min-recipients", 50, "draw no conclusion from fewer than `N` recipients")
	f.StringVar(&given.firstTime, "first-time-share", "", "`SHARE` of recipients never written to before, or off")
	f.StringVar(&given.rejected, "rejected-share", "", "`SHARE` of recipients refused for good, or off")
	f.StringVar(&given.network, "new-network-factor", "", "`FACTOR` of the usual mail, from new networks, or off")
	return cmd
}

// breakerFlags are the flags of 'breaker set' as written.
type breakerFlags struct {
	least                        int
	firstTime, rejected, network string
}

// changes checks the flags that were given; errors are of wrong use.
func (f *breakerFlags) changes(given func(flag string) bool) (list []func(*anomaly.Signs), err error) {
	if given("min-recipients") {
		if f.least < 1 || f.least > 1_000_000 {
			return nil, usagef("--min-recipients is between 1 and 1000000, not %d", f.least)
		}
		list = append(list, func(b *anomaly.Signs) { b.MinRecipients = f.least })
	}
	const share, factor = "a share, more than 0 and at most 1", "a factor, 1 to 1000000"
	for _, sign := range []struct {
		flag, text  string
		least, most float64
		what        string
		of          func(*anomaly.Signs) *float64
	}{
		{"first-time-share", f.firstTime, 0, 1, share, func(b *anomaly.Signs) *float64 { return &b.FirstTimeShare }},
		{"rejected-share", f.rejected, 0, 1, share, func(b *anomaly.Signs) *float64 { return &b.RejectedShare }},
		{"new-network-factor", f.network, 1, 1e6, factor, func(b *anomaly.Signs) *float64 { return &b.NewNetworkFactor }},
	} {
		if !given(sign.flag) {
			continue
		}
		v, ok := signValue(sign.text, sign.least, sign.most)
		if !ok {
			return nil, usagef("--%s is %s, or off; not %q", sign.flag, sign.what, sign.text)
		}
		list = append(list, func(b *anomaly.Signs) { *sign.of(b) = v })
	}
	return list, nil
}

// signValue reads a threshold; 0 is off.
func signValue(s string, least, most float64) (float64, bool) {
	if s == "off" {
		return 0, true
	}
	v, err := strconv.ParseFloat(s, 64)
	return v, err == nil && (v == 0 || v >= least && v > 0 && v <= most)
}

func (a *app) setBreaker(ctx context.Context, changes []func(*anomaly.Signs)) error {
	return a.withPool(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		var b anomaly.Signs
		err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) (err error) {
			if b, err = anomaly.Read(ctx, tx); err != nil {
				return err
			}
			for _, change := range changes {
				change(&b)
			}
			return anomaly.Set(ctx, tx, a.actor(), b)
		})
		if err != nil {
			return fmt.Errorf("set the breaker: %w", err)
		}
		return a.printBreaker(b)
	})
}
