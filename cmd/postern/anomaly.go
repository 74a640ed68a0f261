package main

import (
	"context"
	"fmt"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/anomaly"
)

func (a *app) anomalyCmd() *cobra.Command {
	return noun("anomaly", "detect compromised accounts, and hold their mail",
		a.anomalyShowCmd(), a.anomalySetCmd())
}

// anomalyView is the signs as --json prints them; null is a sign that is off.
type anomalyView struct {
	MinRecipients    int      `json:"min_recipients"`
	FirstTimeShare   *float64 `json:"first_time_share"`
	RejectedShare    *float64 `json:"rejected_share"`
	NewNetworkFactor *float64 `json:"new_network_factor"`
}

func (a *app) anomalyShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "show the thresholds of anomaly detection",
		Args:  noArguments,
		RunE: a.onUsers(func(ctx context.Context, users *accounts, _ []string) error {
			signs, err := anomaly.Read(ctx, users.pool)
			if err != nil {
				return err
			}
			if asJSON {
				return screen.JSON(a.stdout, anomalyJSON(signs))
			}
			return a.printSigns(signs)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func anomalyJSON(signs anomaly.Signs) anomalyView {
	set := func(v float64) *float64 {
		if v == 0 {
			return nil
		}
		return &v
	}
	return anomalyView{signs.MinRecipients, set(signs.FirstTimeShare), set(signs.RejectedShare), set(signs.NewNetworkFactor)}
}

func (a *app) printSigns(signs anomaly.Signs) error {
	t := screen.Table{Head: []string{"SIGN", "TRIPS AT", "MEANING"}, Wraps: true}
	row := func(name string, v float64, of string) {
		at := "off"
		if v > 0 {
			at = strconv.FormatFloat(v, 'g', -1, 64)
		}
		t.Add(name, at, of)
	}
	row("first-time-share", signs.FirstTimeShare, "share of the recipients that the user never wrote to before")
	row("rejected-share", signs.RejectedShare, "share of the recipients that the next server refused permanently")
	row("new-network-factor", signs.NewNetworkFactor, "mail from new networks, as a multiple of the user's hourly mean")
	t.Add("min-recipients", strconv.Itoa(signs.MinRecipients), "no sign trips on fewer recipients")
	return t.Print(a.stdout)
}

func (a *app) anomalySetCmd() *cobra.Command {
	var given signFlags
	cmd := &cobra.Command{
		Use:   "set",
		Short: "configure anomaly detection",
		Long: `Sets the thresholds at which a user is put on hold because the account looks compromised.
All signs of a compromised account are off at first. 0 or 'off' turns a sign off; signs
without a flag stay as they are. A sign looks at the current and the previous clock
hour; running servers follow within 5 seconds.

  --first-time-share 0.8    8 in 10 of the recipients were new to the user: an attacker
                            writes to strangers. The addresses that users wrote
                            to so far are learnt from the history, which takes a while.
  --rejected-share 0.3      3 in 10 of the recipients were permanently refused by the
                            next server: the list is old, or the mail is unwanted.
  --new-network-factor 10   10 times the user's hourly mean over 14 days comes from
                            networks in which the user was not seen for 30 days.
  --min-recipients 50       no sign trips on fewer than 50 recipients (50 at first).

When a sign trips, the user is put on hold and the mail log records it. Mail is still
accepted, and held: nothing is lost, and the attacker notices nothing. List it with
'postern queue holds' and 'postern queue list --user U'; then release it with 'postern
queue release --user U', which also resets the count, or delete it with 'postern queue
cancel --user U'.`,
		Example: `  postern anomaly set --first-time-share 0.8 --rejected-share 0.3 --min-recipients 100
  postern anomaly set --new-network-factor off
  postern queue release --user alice@example.com   # the user did send it`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			changes, err := given.changes(cmd.Flags().Changed)
			if err != nil {
				return err
			}
			if len(changes) == 0 {
				return usagef("'%s' needs something to set: --first-time-share, --rejected-share, --new-network-factor or --min-recipients", cmd.CommandPath())
			}
			return a.setSigns(cmd.Context(), changes)
		},
	}
	f := cmd.Flags()
	f.IntVar(&given.least, "min-recipients", 0, "no sign trips on fewer than `N` recipients")
	f.StringVar(&given.firstTime, "first-time-share", "", "`SHARE` of recipients never written to before, or off")
	f.StringVar(&given.rejected, "rejected-share", "", "`SHARE` of recipients permanently refused, or off")
	f.StringVar(&given.network, "new-network-factor", "", "`FACTOR` of the usual mail, from new networks, or off")
	return cmd
}

// signFlags are the flags of 'anomaly set' as written.
type signFlags struct {
	least                        int
	firstTime, rejected, network string
}

// changes checks the given flags; its errors are usage errors.
func (f *signFlags) changes(given func(flag string) bool) (list []func(*anomaly.Signs), err error) {
	if given("min-recipients") {
		if f.least < 1 || f.least > 1_000_000 {
			return nil, usagef("--min-recipients is between 1 and 1000000, not %d", f.least)
		}
		list = append(list, func(signs *anomaly.Signs) { signs.MinRecipients = f.least })
	}
	const share, factor = "a share, more than 0 and at most 1", "a factor, 1 to 1000000"
	for _, sign := range []struct {
		flag, text  string
		least, most float64
		what        string
		of          func(*anomaly.Signs) *float64
	}{
		{"first-time-share", f.firstTime, 0, 1, share, func(s *anomaly.Signs) *float64 { return &s.FirstTimeShare }},
		{"rejected-share", f.rejected, 0, 1, share, func(s *anomaly.Signs) *float64 { return &s.RejectedShare }},
		{"new-network-factor", f.network, 1, 1e6, factor, func(s *anomaly.Signs) *float64 { return &s.NewNetworkFactor }},
	} {
		if !given(sign.flag) {
			continue
		}
		v, ok := signValue(sign.text, sign.least, sign.most)
		if !ok {
			return nil, usagef("--%s is %s, or off; not %q", sign.flag, sign.what, sign.text)
		}
		list = append(list, func(signs *anomaly.Signs) { *sign.of(signs) = v })
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

func (a *app) setSigns(ctx context.Context, changes []func(*anomaly.Signs)) error {
	return a.withUsers(ctx, func(ctx context.Context, users *accounts) error {
		var signs anomaly.Signs
		err := pgx.BeginFunc(ctx, users.pool, func(tx pgx.Tx) (err error) {
			if signs, err = anomaly.Read(ctx, tx); err != nil {
				return err
			}
			for _, change := range changes {
				change(&signs)
			}
			return anomaly.Set(ctx, tx, users.actor, signs)
		})
		if err != nil {
			return fmt.Errorf("set the signs: %w", err)
		}
		return a.printSigns(signs)
	})
}
