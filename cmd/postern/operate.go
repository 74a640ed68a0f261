package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/queue/desk"
	"postern/relay/upstream/breaker"
)

// operation is one of the verbs that change recipients of the queue.
type operation struct {
	name string
	do   func(*desk.Admin, context.Context, desk.Filter, bool) (int, error)
	what string // the recipients that it changes
	done string // what they are afterwards
	all  string // what --all chooses
	busy bool   // it would concern what is being sent, too

	probe bool // it has upstreams probed whose breaker is open: all, or the one that is chosen

	doubt  bool // it concerns only mail in doubt
	spares bool // it leaves mail that is held because it is in doubt

	// onUser is what the verb does to a whole user, nil for none.
	onUser func(a *app, ctx context.Context, q *desk.Admin, w whole) error
}

func (a *app) queueRetryCmd() *cobra.Command {
	return a.operateCmd(operation{
		name: "retry", do: (*desk.Admin).Retry, what: "waiting recipient", done: "due now", all: "all waiting mail", probe: true, spares: true,
	}, &cobra.Command{
		Short: "try waiting mail now instead of later",
		Long: `Makes waiting recipients due: those of the given messages, those that match all filters,
or with --all those of the whole queue. A running server tries them immediately,
otherwise the next one that starts. Held mail stays held, and mail that is being sent is
not affected. This counts as an attempt: if it fails, the next one is later than it
would have been. An upstream whose breaker is open is probed first; if the probe
succeeds, its mail is sent.`,
		Example: `  postern queue retry --domain example.net
  postern queue retry --reply '451 4.7' --older-than 1h --dry-run`,
	})
}

func (a *app) queueHoldCmd() *cobra.Command {
	var reason string
	cmd := a.operateCmd(operation{
		name: "hold", do: (*desk.Admin).Hold, what: "recipient", done: "held", all: "all waiting mail", busy: true,
		onUser: func(a *app, ctx context.Context, q *desk.Admin, w whole) error { return a.holdUser(ctx, q, w, reason) },
	}, &cobra.Command{
		Short: "keep mail, or all mail of a user, from being sent",
		Long: `Holds waiting recipients: those of the given messages, those that match all filters,
or with --all those of the whole queue. Held mail is not tried and does not expire
until it is released or cancelled. Mail that is being sent is not affected.

With --user alone the user is put on hold: waiting mail is held, mail being sent is held
if it comes back, and new mail of the user is accepted and held, until 'postern queue
release --user' or 'postern queue cancel --user'.`,
		Example: `  postern queue hold --user alice@example.com --reason 'possible account takeover'
  postern queue hold --domain example.net`,
	})
	cmd.Flags().StringVar(&reason, "reason", "", "`TEXT` that says why, shown by 'queue holds' and 'trace'")
	return cmd
}

func (a *app) queueReleaseCmd() *cobra.Command {
	return a.operateCmd(operation{
		name: "release", do: (*desk.Admin).Release, what: "held recipient", done: "released and due now", all: "all held mail", spares: true,
		onUser: func(a *app, ctx context.Context, q *desk.Admin, w whole) error {
			return a.endHold(ctx, q, w, "released and due now", (*desk.Admin).Release, (*desk.Admin).ReleaseUser)
		},
	}, &cobra.Command{
		Short: "release held mail, or all held mail of a user",
		Long: `Releases held recipients: those of the given messages, those that match all filters,
or with --all those of the whole queue. They are due immediately. Mail that is held
because it may have been delivered stays held: 'postern queue resolve' is for that.

With --user alone the holds of the user and of its credentials end, whoever made
them, and all its held mail is released. Otherwise single messages of a user who is
on hold are released, and the hold stays: a message that is deferred is held again.`,
		Example: `  postern queue release --user alice@example.com
  postern queue release 01890000-0000-7000-8000-000000000000`,
	})
}

func (a *app) queueCancelCmd() *cobra.Command {
	return a.operateCmd(operation{
		name: "cancel", do: (*desk.Admin).Cancel, what: "recipient", done: "cancelled", all: "all waiting and held mail", busy: true,
		onUser: func(a *app, ctx context.Context, q *desk.Admin, w whole) error {
			return a.endHold(ctx, q, w, "cancelled", (*desk.Admin).CancelHeld, (*desk.Admin).CancelUser)
		},
	}, &cobra.Command{
		Short: "delete mail, or all held mail of a user",
		Long: `Deletes waiting and held recipients without notifying their sender: those of the
given messages, those that match all filters, or with --all those of the whole queue.
Mail that is being sent is not affected. This cannot be undone; the history keeps the
envelope and names the operator.

With --user alone the holds of the user and of its credentials end, whoever made
them, and all held mail is deleted, including mail that the user, not an attacker, sent. Mail
that waits without being held stays: '--user U --state waiting' selects it. Mail that is
set aside because its rows are bad stays too: '--user U --state held' selects it together
with all other held mail.`,
		Example: `  postern queue cancel --user mallory@example.com --dry-run
  postern queue cancel --sender bulk@example.com --state waiting
  postern queue cancel --all`,
	})
}

func (a *app) queueResolveCmd() *cobra.Command {
	var delivered, resend bool
	cmd := a.operateCmd(operation{
		name: "resolve", what: "recipient", done: "resolved", all: "all mail in doubt", busy: true, doubt: true,
		do: func(q *desk.Admin, ctx context.Context, f desk.Filter, dryRun bool) (int, error) {
			if delivered {
				return q.ResolveDelivered(ctx, f, dryRun)
			}
			return q.ResolveResend(ctx, f, dryRun)
		},
	}, &cobra.Command{
		Short: "record what became of mail that may have been delivered",
		Long: `Ends the doubt about recipients whose mail may have been delivered, because the
connection broke before the next server confirmed it: those of the given messages, those
that match all filters, or with --all those of the whole queue. 'postern queue list
--in-doubt' lists them, held and waiting. Ask the recipient, or look in the next
server's log. Then:

  --delivered  it arrived: the recipient is done, and the history names the operator
  --resend     it did not: it is due now, by any way of its route, as a possible duplicate

Mail that is being sent is not affected.`,
		Example: `  postern queue resolve 01890000-0000-7000-8000-000000000000 --delivered
  postern queue resolve 01890000-0000-7000-8000-000000000000 --recipient bob@example.net --resend
  postern queue resolve --upstream provider --older-than 4h --resend --dry-run`,
	})
	cmd.Flags().BoolVar(&delivered, "delivered", false, "it was delivered")
	cmd.Flags().BoolVar(&resend, "resend", false, "it was not: send it again")
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if delivered == resend {
			return usagef("'%s' needs --delivered or --resend, one of them", cmd.CommandPath())
		}
		return run(cmd, args)
	}
	return cmd
}

// operateCmd completes cmd: the arguments and flags that choose, and the work.
func (a *app) operateCmd(op operation, cmd *cobra.Command) *cobra.Command {
	var all, dryRun bool
	var chosen *selection
	cmd.Use = op.name + " ID... [--recipient ADDRESS] | FILTERS | --all"
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ways := 0
		filtered := chosen.any()
		if len(args) > 0 {
			filtered = chosen.any("recipient")
		}
		for _, way := range []bool{all, len(args) > 0, filtered} {
			if way {
				ways++
			}
		}
		if ways != 1 {
			return usagef("'%s' needs queue ids, or filters such as --domain, or --all: one of the three", cmd.CommandPath())
		}
		f, err := chosen.filter()
		if err != nil {
			return err
		}
		f.InDoubt = f.InDoubt || op.doubt
		for _, arg := range args {
			id, err := parseID(arg)
			if err != nil {
				return err
			}
			f.IDs = append(f.IDs, id)
		}
		wholeUser := op.onUser != nil && *chosen.given["user"] != "" && !chosen.any("user")
		if !wholeUser && cmd.Flags().Changed("reason") {
			return usagef("--reason belongs to the hold of a user: '%s --user U', without other filters", cmd.CommandPath())
		}
		if flag := cmd.Flags().Lookup("reason"); flag != nil {
			if err := checkReason(flag.Value.String()); err != nil {
				return err
			}
		}
		return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
			if err := chosen.resolve(ctx, users.pool, &f); err != nil {
				return err
			}
			q := users.queue()
			if err := allKnown(ctx, q, f.IDs); err != nil {
				return err
			}
			if wholeUser {
				return op.onUser(a, ctx, q, whole{f.UserID, f.UserName, dryRun})
			}
			if op.probe && !dryRun {
				if _, err := breaker.Hurry(ctx, users.pool, f.Upstream); err != nil {
					return err
				}
			}
			return a.operate(ctx, q, op, f, dryRun)
		})
	}
	fl := cmd.Flags()
	chosen = selectionOf(fl)
	fl.BoolVar(&all, "all", false, op.all)
	fl.BoolVar(&dryRun, "dry-run", false, "change nothing, print how many recipients would change")
	return cmd
}

// operate changes recipients and says how many, and how many were in a node's hand.
func (a *app) operate(ctx context.Context, q *desk.Admin, op operation, f desk.Filter, dryRun bool) error {
	n, err := op.do(q, ctx, f, dryRun)
	if err != nil {
		return err
	}
	said := changed(n, op.what, op.done, dryRun)
	if op.busy && (f.State == "" || f.State == desk.StateSending) {
		f.State = ""
		busy, err := q.InHand(ctx, f)
		if err != nil {
			return err
		}
		if busy > 0 {
			said += "; " + changed(busy, "recipient", "being sent and not affected", false)
		}
	}
	if op.spares {
		left, err := unresolved(ctx, q, f)
		if err != nil {
			return err
		}
		said += left
	}
	_, err = fmt.Fprintln(a.stdout, said)
	return err
}

// unresolved says how many recipients a verb leaves because they may have been delivered.
func unresolved(ctx context.Context, q *desk.Admin, f desk.Filter) (string, error) {
	n, err := q.Unresolved(ctx, f)
	if n == 0 || err != nil {
		return "", err
	}
	return "; " + changed(n, "recipient", "in doubt and left for 'postern queue resolve'", false), nil
}

// changed says how many are what: "1 held recipient is released".
func changed(n int, what, done string, dryRun bool) string {
	be := screen.Be(n)
	if dryRun {
		be = "would be"
	}
	return screen.Count(n, what) + " " + be + " " + done
}

// whole is a verb's use on all mail of a user.
type whole struct {
	id     int64
	name   string
	dryRun bool
}

func (a *app) holdUser(ctx context.Context, q *desk.Admin, w whole, reason string) error {
	holds, err := holdsOf(ctx, q, w.id)
	if err != nil {
		return err
	}
	state := "is on hold"
	if w.dryRun {
		state = "would be on hold"
	}
	for _, h := range holds {
		if h.CredentialID == 0 {
			state = fmt.Sprintf("is on hold already, since %s by %s%s", screen.LocalTime(h.MadeAt), h.MadeBy, screen.Colon(h.Reason))
		}
	}
	var n int
	mine := desk.Filter{UserID: w.id, UserName: w.name}
	if w.dryRun {
		n, err = q.Hold(ctx, mine, true)
	} else {
		n, err = q.HoldUser(ctx, w.id, 0, reason)
	}
	if err != nil {
		return err
	}
	busy, err := q.InHand(ctx, mine)
	if err != nil {
		return err
	}
	said := fmt.Sprintf("%s %s; %s", w.name, state, changed(n, "recipient", "held", w.dryRun))
	if busy > 0 {
		said += fmt.Sprintf("; %d being sent will be held if not delivered now", busy)
	}
	_, err = fmt.Fprintln(a.stdout, screen.Printable(said))
	return err
}

// endHold ends the holds of a user, and what is held is done: released or cancelled.
func (a *app) endHold(ctx context.Context, q *desk.Admin, w whole, done string,
	count func(*desk.Admin, context.Context, desk.Filter, bool) (int, error), end func(*desk.Admin, context.Context, int64) (int, error)) error {
	holds, err := holdsOf(ctx, q, w.id)
	if err != nil {
		return err
	}
	var n int
	if w.dryRun {
		n, err = count(q, ctx, desk.Filter{UserID: w.id, UserName: w.name, State: desk.StateHeld}, true)
	} else {
		n, err = end(q, ctx, w.id)
	}
	if err != nil {
		return err
	}
	state := "is no longer on hold"
	switch {
	case len(holds) == 0:
		state = "was not on hold"
	case w.dryRun:
		state = "would no longer be on hold"
	}
	left, err := unresolved(ctx, q, desk.Filter{UserID: w.id})
	if err != nil {
		return err
	}
	said := []string{w.name + " " + state, changed(n, "held recipient", done, w.dryRun) + left}
	_, err = fmt.Fprintln(a.stdout, screen.Printable(strings.Join(said, "; ")))
	return err
}
