package webhook

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/cmd/postern/config"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/relay/feed"
	"postern/relay/seal"
	"postern/relay/webhook"
)

// Shell is what the commands have of the program that they are part of.
type Shell struct {
	In  io.Reader
	Out io.Writer
	// With runs do on the database, in the name of who acts.
	With func(ctx context.Context, do func(ctx context.Context, pool *pgxpool.Pool, actor string) error) error
	// Noun groups verbs.
	Noun func(use, short string, verbs ...*cobra.Command) *cobra.Command
	// Invalid marks a refusal.ErrInvalid, of the commands' arguments, as a usage error.
	Invalid func(error) error
	// Keys are the sealing keys of this machine.
	Keys func(ctx context.Context, pool *pgxpool.Pool) (*seal.Sealer, error)
	// Load reads the configuration file.
	Load func() (cfg config.Config, found bool, err error)
}

// Webhook is 'postern webhook'.
func (s Shell) Webhook() *cobra.Command {
	return s.Noun("webhook", "manage the HTTP endpoints that events are sent to",
		s.verb(s.add()), s.verb(s.set()), s.verb(s.list()), s.verb(s.show()), s.verb(s.test()), s.verb(s.verify()), s.verb(s.rotate()),
		s.verb(s.move("pause NAME", "send nothing for a while", "Sends nothing until 'postern webhook resume'. Events that happen meanwhile are sent then, as far as\nthey are still kept: for a paused webhook, no longer than [queue] history.", "is paused", (*webhook.Store).Pause)),
		s.verb(s.move("resume NAME", "end a pause", "Goes on where the webhook stopped: first with events that wait for another try, then with new ones.", "is active", (*webhook.Store).Resume)),
		s.verb(s.move("enable NAME", "send again to an endpoint that answered 410", "Makes a webhook active again after its endpoint answered 410. It goes on where it stopped, as far as\nevents are still kept.", "is active", (*webhook.Store).Enable)),
		s.verb(s.replay()),
		s.verb(s.move("remove NAME", "remove a webhook", "Removes a webhook, with its secret, its log and all that waits for it.", "is removed", (*webhook.Store).Remove)))
}

// verb completes a command.
func (s Shell) verb(cmd *cobra.Command) *cobra.Command {
	run := cmd.RunE
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return s.Invalid(run(cmd, args)) }
	if cmd.Args == nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return s.Invalid(refusal.Invalid("'%s' needs one argument, %s", cmd.CommandPath(), cmd.Use[strings.LastIndexByte(cmd.Use, ' ')+1:]))
			}
			return nil
		}
	}
	return cmd
}

// store runs do on the webhooks. sealed: with the keys of the secrets.
func (s Shell) store(cmd *cobra.Command, sealed bool, do func(ctx context.Context, store *webhook.Store) error) error {
	return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
		store := &webhook.Store{DB: pool, Actor: actor}
		if sealed {
			var err error
			if store.Sealer, err = s.Keys(ctx, pool); err != nil {
				return err
			}
		}
		return do(ctx, store)
	})
}

// move is a command that changes the state of a webhook.
func (s Shell) move(use, short, long, done string, do func(*webhook.Store, context.Context, string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, Long: long, RunE: func(cmd *cobra.Command, args []string) error {
		return s.store(cmd, false, func(ctx context.Context, store *webhook.Store) error {
			if err := do(store, ctx, args[0]); err != nil {
				return err
			}
			_, err := fmt.Fprintf(s.Out, "webhook %s %s\n", args[0], done)
			return err
		})
	}}
}

// reach is what the configuration file allows.
func (s Shell) reach() (webhook.Reach, error) {
	cfg, _, err := s.Load()
	if err != nil {
		return webhook.Reach{}, err
	}
	return cfg.Webhooks.Reach()
}

// refused is why a node with the configuration file of this machine sends an endpoint nothing: "" if it does,
// or there is no such file.
func (s Shell) refused(ctx context.Context, endpoint string) string {
	cfg, found, err := s.Load()
	if err != nil || !found {
		return ""
	}
	reach, err := cfg.Webhooks.Reach()
	if err == nil {
		err = reach.Check(ctx, endpoint)
	}
	if err == nil {
		return ""
	}
	return "nodes with the configuration file of this machine send it nothing: " + screen.Printable(err.Error())
}

func (s Shell) list() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list webhooks",
		Long:  "Lists all webhooks: their states, how many events wait for another try, and how far each is behind.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return s.store(cmd, false, func(ctx context.Context, store *webhook.Store) error {
				list, err := store.List(ctx, "")
				switch {
				case err != nil:
					return err
				case asJSON:
					return screen.JSON(s.Out, append([]webhook.Webhook{}, list...))
				}
				t := screen.TableOf([]string{"NAME", "STATE", "USER", "KINDS", "WAITING", "BEHIND", "URL"}, row, list)
				t.Spare, t.Wraps = []string{"KINDS", "BEHIND"}, true
				if err := t.Print(s.Out); err != nil || len(list) == 0 {
					return err
				}
				return s.held(list[0].FeedHeld)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func row(w webhook.Webhook) []string {
	of, kinds := w.User, "all"
	if of == "" {
		of = "all"
	}
	if len(w.Kinds) > 0 {
		kinds = strings.Join(screen.Each(w.Kinds, func(k feed.Kind) string { return string(k) }), ",")
	}
	return []string{w.Name, string(w.State), of, kinds, strconv.Itoa(w.Waiting), span(w.Behind), w.URL}
}

func span(seconds float64) string {
	return (time.Duration(seconds) * time.Second).String()
}

// held says that all webhooks wait for the feed.
func (s Shell) held(since *time.Time) (err error) {
	if since != nil {
		_, err = fmt.Fprintf(s.Out, "an open transaction has held back the feed of all webhooks since %s: 'postern check --only database' names it\n", screen.LocalTime(*since))
	}
	return err
}

// status is that of an answer; 0 means that there was none.
func status(code int) string {
	if code == 0 {
		return "-"
	}
	return strconv.Itoa(code)
}

// shown is a webhook with its log, as JSON.
type shown struct {
	webhook.Webhook
	Refused string        `json:"refused,omitempty"`
	Tries   []webhook.Try `json:"tries"`
}

func (s Shell) show() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show NAME",
		Short: "show a webhook and its last tries",
		Long:  "Shows a webhook, and its last 100 requests, the newest first: the event, the answer's status, how long it took, and why it failed. --json has the beginning of each answer's body as well.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.store(cmd, false, func(ctx context.Context, store *webhook.Store) error {
				w, tries, err := store.Show(ctx, args[0])
				if err != nil {
					return err
				}
				all := shown{w, s.refused(ctx, w.URL), append([]webhook.Try{}, tries...)}
				if asJSON {
					return screen.JSON(s.Out, all)
				}
				if err := s.describe(&all); err != nil {
					return err
				}
				t := screen.TableOf([]string{"AT", "EVENT", "KIND", "STATUS", "MS", "ERROR"}, func(t webhook.Try) []string {
					return []string{screen.LocalTime(t.At), t.EventID.String(), string(t.Kind), status(t.Status), strconv.Itoa(t.TookMS), screen.OrDash(t.Error)}
				}, tries)
				t.Spare, t.Wraps = []string{"MS", "KIND"}, true
				return t.Print(s.Out)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (s Shell) describe(w *shown) error {
	fmt.Fprintf(s.Out, "%s is %s: %s\n", w.Name, w.State, screen.Printable(w.URL))
	if w.Reason != "" {
		fmt.Fprintf(s.Out, "why: %s\n", screen.Printable(w.Reason))
	}
	if w.Refused != "" {
		fmt.Fprintln(s.Out, w.Refused)
	}
	most := ""
	if w.PerMinute > 0 {
		most = fmt.Sprintf(", %d per minute", w.PerMinute)
	}
	fmt.Fprintf(s.Out, "requests: at most %d at the same time%s\n", w.Concurrency, most)
	fmt.Fprintf(s.Out, "waiting for another try: %d; given up: %d; failures in a row: %d; behind: %s\n", w.Waiting, w.GivenUp, w.Failures, span(w.Behind))
	for _, line := range []struct {
		text string
		at   *time.Time
	}{{"nothing is sent before", w.WaitUntil}, {"the former secret signs until", w.OldUntil}, {"deleted before they could be sent: events until", w.GoneUntil}} {
		if line.at != nil {
			fmt.Fprintf(s.Out, "%s %s\n", line.text, screen.LocalTime(*line.at))
		}
	}
	return s.held(w.FeedHeld)
}
