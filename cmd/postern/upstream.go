package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/account"
	"postern/cmd/postern/explain"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/smarthost"
	"postern/internal/refusal"
	"postern/relay/queue/desk"
	"postern/relay/route"
	"postern/relay/seal"
	"postern/relay/upstream"
	"postern/relay/upstream/breaker"
	"postern/relay/upstream/budget"
)

func (a *app) upstreamCmd() *cobra.Command {
	return noun("upstream", "manage the smarthosts that mail is forwarded to",
		a.upstreamAddCmd(), a.upstreamSetCmd(), a.upstreamListCmd(), a.upstreamShowCmd(), a.upstreamPauseCmd(true), a.upstreamPauseCmd(false),
		a.upstreamTestCmd(), a.upstreamClassifyCmd(), a.replyCmd(), a.upstreamLoginCmd(), a.upstreamRemoveCmd())
}

func (a *app) upstreamAddCmd() *cobra.Command {
	var flags smarthost.Flags
	var ifMissing bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "add a smarthost",
		Long: `Adds a smarthost under a name that routes refer to.

--preset names the provider: its host, port, TLS mode and limits are used where no flag
sets another, and its replies are recognised ('postern upstream reply list NAME').

--tls says how the connection is protected:
  none           no TLS
  opportunistic  STARTTLS when it is offered, whatever the certificate
  require        STARTTLS with a verified certificate, or the mail waits
  implicit       TLS from the start with a verified certificate, or the mail waits

The certificate must be valid for the host's name, or --tls-name, and issued by a trusted
CA or one in --ca-file. With --tls-pin it must have one of the keys given, whatever its
issuer, name and validity.

--source is a local address of the sending nodes: mail waits on a node that lacks it.

--budget is the most that all nodes together send: messages and recipients in a window of
s, m, h or d (a rolling window, or with @ZONE a calendar day: 10000/d@Europe/Berlin), and
concurrent connections ('sessions'). Mail over it takes the next way (an upstream, or MX)
of its route, or waits for its turn; 'postern upstream show' shows what is used.

An account (--username with a password) needs --tls require or implicit. Its password is
sealed with the key in secret_key_file before it is stored. With --oauth, access tokens
from Microsoft or Google are used instead of a password.

Mail whose sender is not among --senders takes another way of its route. --rewrite-sender
replaces the sender in the envelope and the address in From; the display name is kept.
Reply-To is set to the original From unless the message has a Reply-To, and Sender is
removed. Bounces from later servers go to the new address. The null sender is left
unchanged.

--in-doubt is the policy for mail that may have been delivered, because the connection
broke before the smarthost confirmed it. A policy set for the user takes precedence:
` + account.DoubtHelp[1:],
		Example: `  postern upstream add out --host smtp.example.net:587 --tls require
  postern upstream add m365 --preset m365 --username relay@example.com --password-stdin <password.txt
  postern upstream add m365 --preset m365 --username relay@example.com --oauth client-credentials --tenant example.com --client-id ID --client-secret-stdin <secret.txt
  postern upstream add ses --preset ses --host email-smtp.eu-central-1.amazonaws.com --username AKIA1 --password-stdin <secret.txt`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			up := upstream.Account{Name: args[0]}
			if err := flags.Apply(cmd, &up); err != nil {
				return invalidUse(err)
			}
			if (up.Username != "") != flags.Proves() {
				return usagef("--username and --password-stdin, --password-file or --oauth go together")
			}
			put, err := flags.Proof(a.stdin, a.warn)
			if err == nil {
				err = put(&up)
			}
			if err != nil {
				return err
			}
			err = a.addUpstream(cmd.Context(), up)
			if ifMissing && errors.Is(err, refusal.ErrExists) {
				return a.thereAlready("upstream", up.Name)
			}
			return err
		},
	}
	flags.Add(cmd)
	cmd.MarkFlagsOneRequired("host", "preset")
	cmd.Flags().BoolVar(&ifMissing, "if-missing", false, ifMissingUsage)
	return cmd
}

// invalidUse marks what cannot be stored as wrong use.
func invalidUse(err error) error {
	if errors.Is(err, refusal.ErrInvalid) {
		return usageError{err.Error()}
	}
	return err
}

func (a *app) addUpstream(ctx context.Context, up upstream.Account) error {
	if err := up.Validate(); err != nil {
		return usageError{err.Error()}
	}
	return a.withUpstreams(ctx, up.Username != "", func(ctx context.Context, _ *accounts, store *upstream.Store) error {
		if err := store.Add(ctx, up); err != nil {
			return err
		}
		_, err := fmt.Fprintf(a.stdout, "added upstream %s\n", smarthost.Text(up))
		a.hintLogin(up)
		return err
	})
}

// withUpstreams runs do with the store of accounts, which has the key only if it is needed.
func (a *app) withUpstreams(ctx context.Context, key bool, do func(ctx context.Context, users *accounts, store *upstream.Store) error) error {
	return a.withUsers(ctx, func(ctx context.Context, users *accounts) (err error) {
		var sealer *seal.Sealer
		if key {
			if sealer, err = a.sealingKeys(ctx, users.pool); err != nil {
				return err
			}
		}
		return do(ctx, users, users.upstreams(sealer))
	})
}

func (a *app) upstreamSetCmd() *cobra.Command {
	var flags smarthost.Flags
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "change a smarthost's settings",
		Long: `Changes the settings whose flags are given, as 'postern upstream add' describes them;
all nodes follow within two seconds, and mail that waits uses them at its next attempt.
A smarthost whose breaker is open is then probed. 0 and '' stand for the default,
which is the preset's if it has one.

A new --username also needs its password, or --oauth with the flags that go with it.`,
		Example: `  postern upstream set out --password-stdin <password.txt
  postern upstream set out --preset google --connections 2`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().NFlag() == 0 {
				return usagef("'%s' needs a flag that says what to change", cmd.CommandPath())
			}
			put, err := flags.Proof(a.stdin, a.warn)
			if err != nil {
				return err
			}
			return a.withUpstreams(cmd.Context(), flags.Proves(), func(ctx context.Context, users *accounts, store *upstream.Store) error {
				up, err := store.Change(ctx, args[0], func(up *upstream.Account) error {
					if err := flags.Apply(cmd, up); err != nil {
						return err
					}
					return put(up)
				})
				if err != nil {
					return invalidUse(err)
				}
				fmt.Fprintf(a.stdout, "changed upstream %s\n", smarthost.Text(up))
				if flags.Proves() {
					a.hintLogin(up)
				}
				if cmd.Flags().Changed("senders") || cmd.Flags().Changed("budget") {
					if err := a.retryWaiting(ctx, users); err != nil {
						return err
					}
				}
				// A probe that succeeds lets its mail go: by then the nodes know of the change.
				_, err = a.probeOpen(ctx, users, args[0], route.TableAge+brief)
				return err
			})
		},
	}
	flags.Add(cmd)
	return cmd
}

func (a *app) upstreamListCmd() *cobra.Command {
	return listing[smarthost.Upstream]{
		head: []string{"NAME", "HOST", "TLS", "ACCOUNT", "PRESET", "STATE"}, spare: []string{"PRESET", "TLS"},
		row: func(u smarthost.Upstream) []string {
			return []string{u.Name, net.JoinHostPort(u.Host, strconv.Itoa(u.Port)), string(u.TLS), screen.OrDash(u.Username), screen.OrDash(u.Preset), u.State()}
		},
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]smarthost.Upstream, error) {
			list, err := users.upstreams(nil).List(ctx)
			if err != nil {
				return nil, err
			}
			breakers, err := breaker.List(ctx, users.pool)
			return screen.Each(list, func(u upstream.Listed) smarthost.Upstream {
				return smarthost.Upstream{Listed: u, Breaker: breakers.Of(u.Name)}
			}), err
		},
	}.command(a, &cobra.Command{Use: "list", Short: "list the smarthosts", Args: noArguments})
}

func (a *app) upstreamShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "show a smarthost's settings, budget, and what its replies mean",
		Long: `Shows the settings of a smarthost, and why its breaker is open, if it is. For its
budget, shows what is used (with what nodes have leased), what is left, when more
becomes available, and how many recipients wait for it. Then comes the table by which
its replies are judged, as 'postern upstream reply list' shows it.`,
		Args: one("name", "the upstream's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			store := users.upstreams(nil)
			listed, err := store.Named(ctx, args[0])
			if err != nil {
				return err
			}
			breakers, err := breaker.List(ctx, users.pool)
			if err != nil {
				return err
			}
			replies, err := store.Replies(ctx, args[0])
			if err != nil {
				return err
			}
			u := smarthost.Shown{Upstream: smarthost.Upstream{Listed: listed, Breaker: breakers.Of(args[0])}, Replies: replies.Rows()}
			if u.Used, err = budget.Read(ctx, users.pool, map[string]string{u.Name: u.Budget}); err != nil {
				return err
			}
			if asJSON {
				return screen.JSON(a.stdout, u)
			}
			return u.Print(a.stdout)
		}),
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) upstreamPauseCmd(pause bool) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "resume NAME",
		Short: "send mail to a paused smarthost again, or try one that failed",
		Long: `Ends a pause. The mail that waits for it is due immediately. A smarthost whose breaker is
open is probed by a running server within seconds, and again soon if that fails; when a
probe succeeds, its mail is sent.`,
		Args: one("name", "the upstream's name"),
	}
	if pause {
		cmd.Use, cmd.Short = "pause NAME", "stop sending mail to a smarthost"
		cmd.Long = `Stops using a smarthost until 'postern upstream resume'. Its mail takes the next way of
its route, or waits without using attempts while its lifetime keeps running; the output
says which, for each route. 'postern queue show' says why a message waits. All nodes follow within
two seconds; mail that a node has started or queued by then is still sent.`
	}
	cmd.RunE = a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
		changed, err := users.upstreams(nil).Pause(ctx, args[0], pause)
		if err != nil {
			return err
		}
		if !pause {
			if open, err := a.probeOpen(ctx, users, args[0], 0); err != nil || open && !changed {
				return err
			}
		}
		said := map[bool]string{true: "paused", false: "resumed"}[pause]
		if !changed {
			_, err = fmt.Fprintf(a.stdout, "upstream %s was %s already; nothing is changed\n", args[0], said)
			return err
		}
		fmt.Fprintf(a.stdout, "%s upstream %s\n", said, args[0])
		if pause {
			return a.tellWithout(ctx, users, args[0])
		}
		return a.retryWaiting(ctx, users)
	})
	return cmd
}

// tellWithout says which way the mail of each route of a paused upstream goes now, and how much that it
// has deferred waits.
func (a *app) tellWithout(ctx context.Context, users *accounts, name string) error {
	rules, who, err := readRoutes(ctx, users)
	if err != nil {
		return err
	}
	list, err := users.upstreams(nil).List(ctx)
	if err != nil {
		return err
	}
	for _, r := range rules {
		if !slices.Contains(r.Via, name) {
			continue
		}
		left := slices.DeleteFunc(slices.Clone(r.Via), func(way string) bool {
			return slices.ContainsFunc(list, func(u upstream.Listed) bool { return u.Name == way && u.PausedAt != nil })
		})
		now := "its mail waits"
		if len(left) > 0 {
			now = "its mail goes by " + strings.Join(left, ", ")
		}
		fmt.Fprintf(a.stdout, "route %d (%s): %s\n", r.ID, explain.MatchText(r, who), now)
	}
	n, err := users.queue().Retry(ctx, desk.Filter{State: desk.StateWaiting, Upstream: name}, true)
	if err == nil && n > 0 {
		_, err = fmt.Fprintf(a.stdout, "%s that it deferred %s waiting, until the next attempt at least\n", screen.Count(n, "recipient"), screen.Be(n))
	}
	return err
}

// probeOpen has an upstream whose breaker is open probed after a time, and says so.
func (a *app) probeOpen(ctx context.Context, users *accounts, name string, after time.Duration) (open bool, err error) {
	all, err := breaker.List(ctx, users.pool)
	if err != nil || !all.Of(name).Open {
		return false, err
	}
	if err := pause(ctx, after); err != nil {
		return true, err
	}
	if _, err := breaker.Hurry(ctx, users.pool, name); err != nil {
		return true, err
	}
	fmt.Fprintf(a.stdout, "the breaker of upstream %s is open: a running server probes it within seconds; 'postern upstream show %[1]s' has the result\n", name)
	return true, nil
}

func (a *app) upstreamRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "remove a smarthost that no route uses",
		Args:  one("name", "the upstream's name"),
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			staying, err := users.queue().Staying(ctx, args[0])
			if err != nil {
				return err
			}
			if staying > 0 {
				return refusal.Invalid("%s in doubt: upstream %q may have delivered to them, so they stay with it; list them with 'postern queue list --upstream %[2]s --in-doubt', "+
					"and end the doubt with 'postern queue resolve'", screen.Count(staying, "recipient"), args[0])
			}
			if err := unrouted(ctx, users, args[0]); err != nil {
				return err
			}
			if err := users.upstreams(nil).Remove(ctx, args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(a.stdout, "removed upstream %s\n", args[0])
			return err
		}),
	}
}

// unrouted refuses an upstream that routes name.
func unrouted(ctx context.Context, users *accounts, name string) error {
	rules, err := route.NewStore(users.pool).List(ctx)
	if err != nil {
		return err
	}
	var ids []string
	for _, r := range rules {
		if slices.Contains(r.Via, name) {
			ids = append(ids, strconv.FormatInt(r.ID, 10))
		}
	}
	if len(ids) == 0 {
		return nil
	}
	return refusal.Invalid("upstream %q is used by a route: number %s of 'postern route list'; give that another upstream first, with 'postern route add --replace', or remove it", name, strings.Join(ids, ", "))
}
