package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/smarthost"
	"postern/internal/units"
	"postern/relay/smtp"
	"postern/relay/upstream"
)

func (a *app) replyCmd() *cobra.Command {
	return noun("reply", "manage what the replies of a smarthost mean",
		a.replyAddCmd(), a.replyListCmd(), a.replyRemoveCmd())
}

// judgingHelp says what a row is.
const judgingHelp = `The first row that matches a reply decides: an admin's rows, then those of the preset, then
those for every upstream. A row has

  --code       554, or 55x, 5xx, 4xx for a family
  --enhanced   5.2.0, or 5.7.x, x.5.3, or none for replies without one
  --text       how the text begins; case and amount of white space are ignored
  --stage      connect, tls, auth, mail, rcpt, data or dot; more is RCPT after a recipient
               was accepted: the server wants the others in another transaction
  --result     later (the mail waits) or never (it fails)
  --scope      what is at fault: recipient, message, sender (what we may send as), account,
               connection or host. Only recipient and message can fail mail
  --wait       until the next attempt, instead of the schedule's wait

A 5yz that no row matches fails the recipient at RCPT, and elsewhere the message.`

func (a *app) replyAddCmd() *cobra.Command {
	var row upstream.Row
	var stage, result, scope, wait string
	var first bool
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "define what a reply of a smarthost means",
		Long:  "Adds a row after those that were added before, or with --first before them.\n\n" + judgingHelp,
		Example: `  postern upstream reply add out --code 554 --enhanced 5.2.0 --text 'daily quota' --result later --scope account --wait 1h
  postern upstream reply add out --code 550 --text 'spam' --stage dot --result never --scope message`,
		Args: one("name", "the upstream's name"),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			row.Stage, row.Result, row.Scope = upstream.Stage(stage), upstream.Result(result), upstream.Scope(scope)
			if row.Wait, err = spanFlag("wait", wait); err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				upstreams := users.upstreams(nil)
				row, err := upstreams.AddReply(ctx, args[0], row, first)
				if err != nil {
					return invalidUse(err)
				}
				fmt.Fprintf(a.stdout, "added row %d to upstream %s: %s means %s, %s\n", row.ID, args[0], screen.Printable(row.String()), row.Result, row.Scope)
				if strings.HasSuffix(row.Code, "x") && row.Enhanced == "" && row.Text == "" && row.Scope == upstream.ScopeAccount && !row.Stage.BeforeMail() {
					fmt.Fprintf(a.stderr, "row %d blames the account for any %s, as for a user's mistyped recipient: such mail waits instead of failing, "+
						"and after that of two users all mail for the upstream waits; narrow the row with --enhanced, --text or --stage\n", row.ID, row.Code)
				}
				replies, err := upstreams.Replies(ctx, args[0])
				if err != nil {
					return err
				}
				if by := replies.HiddenBy(row.ID); by != nil {
					fmt.Fprintf(a.stderr, "row %d is never used: row %d comes first and matches all its replies; remove that one, or add this one with --first\n", row.ID, by.ID)
				}
				return nil
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&row.Code, "code", "", "`CODE` of the reply: 554, 55x, 5xx or 4xx")
	f.StringVar(&row.Enhanced, "enhanced", "", "enhanced `CODE`: 5.2.0, 5.7.x, x.5.3 or none")
	f.StringVar(&row.Text, "text", "", "`TEXT` that the reply's text begins with")
	f.StringVar(&stage, "stage", "", "`STAGE` of the conversation: "+upstream.Words(upstream.Stages()))
	f.StringVar(&result, "result", string(upstream.Later), "`RESULT`: later or never")
	f.StringVar(&scope, "scope", "", "`SCOPE`, what is at fault: "+upstream.Words(upstream.Scopes()))
	f.StringVar(&wait, "wait", "", "`TIME` until the next attempt (default: that of the schedule)")
	f.BoolVar(&first, "first", false, "put it before the rows that were added earlier")
	for _, name := range []string{"code", "scope"} {
		_ = cmd.MarkFlagRequired(name)
	}
	return cmd
}

func (a *app) replyListCmd() *cobra.Command {
	return listing[upstream.Row]{
		head: smarthost.ReplyHead(), spare: smarthost.ReplySpare(),
		row: smarthost.ReplyRow,
		load: func(ctx context.Context, users *accounts, args []string, _ int) ([]upstream.Row, error) {
			replies, err := users.upstreams(nil).Replies(ctx, args[0])
			if err != nil {
				return nil, err
			}
			return replies.Rows(), nil
		},
	}.command(a, &cobra.Command{
		Use:   "list NAME",
		Short: "list what the replies of a smarthost mean",
		Long:  "Lists the table by which replies are judged, in its order.\n\n" + judgingHelp,
		Args:  one("name", "the upstream's name"),
	})
}

func (a *app) replyRemoveCmd() *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME ID",
		Short: "remove a row that an admin has added",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("'%s' needs the upstream's name, and the row's number", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := strconv.ParseInt(args[1], 10, 64)
			if err != nil {
				return usagef("%q is not a row's number: see 'postern upstream reply list %s'", args[1], args[0])
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				row, err := users.upstreams(nil).RemoveReply(ctx, args[0], id)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "removed row %d of upstream %s: %s meant %s, %s\n", id, args[0], screen.Printable(row.String()), row.Result, row.Scope)
				return err
			})
		},
	}
}

func (a *app) upstreamClassifyCmd() *cobra.Command {
	var stage string
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "classify NAME REPLY",
		Short: "show what a reply of a smarthost means, and why",
		Long: `Shows what a reply, as a trace or the log quotes it, means at a stage of the
conversation, and which row decides ('postern upstream reply list').`,
		Example: `  postern upstream classify out '554 5.2.0 STOREDRV.Submission.Exception:SubmissionQuotaExceededException'
  postern upstream classify out '550 5.1.1 no such user' --stage rcpt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return usagef("'%s' needs the upstream's name, and a reply in quotes", cmd.CommandPath())
			}
			return nil
		},
		RunE: a.onUsers(func(ctx context.Context, users *accounts, args []string) error {
			line := strings.Join(strings.Fields(args[1]), " ") + "\r\n"
			reply, err := smtp.ReadReply(smtp.NewReader(strings.NewReader(line)), smtp.ReplyLimits{})
			if err != nil {
				return usagef("%q is not a reply of the form '554 5.2.0 text'", args[1])
			}
			if !upstream.Stage(stage).Known() {
				return usagef("--stage: %q is none of %s", stage, upstream.Words(upstream.Stages()))
			}
			replies, err := users.upstreams(nil).Replies(ctx, args[0])
			if err != nil {
				return err
			}
			v := replies.Classify(upstream.Stage(stage), reply)
			if asJSON {
				return screen.JSON(a.stdout, smarthost.Verdict{Result: v.Result, Scope: v.Scope, Wait: v.Wait().Seconds(), Row: v.Row})
			}
			_, err = fmt.Fprintln(a.stdout, screen.Printable(verdictText(v)))
			return err
		}),
	}
	cmd.Flags().StringVar(&stage, "stage", string(upstream.StageDot), "`STAGE` at which it came: "+upstream.Words(upstream.Stages()))
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func verdictText(v upstream.Verdict) string {
	text := string(v.Result) + ", " + string(v.Scope)
	if wait := v.Wait(); wait > 0 {
		text += ", next attempt in " + units.FormatSpan(wait)
	}
	if v.Row == nil {
		return text + ": by its class and stage, no row matches"
	}
	by := v.Row.From + ", " + v.Row.String()
	if v.Row.ID != 0 {
		by = fmt.Sprintf("row %d, %s", v.Row.ID, v.Row)
	}
	if v.Row.Why != "" {
		by += ": " + v.Row.Why
	}
	return text + ": by " + by
}
