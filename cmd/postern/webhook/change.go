package webhook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/events"
	"postern/cmd/postern/screen"
	"postern/internal/refusal"
	"postern/internal/units"
	"postern/relay/webhook"
)

func (s Shell) add() *cobra.Command {
	var user, name string
	var all bool
	var kinds []string
	n := webhook.New{}
	cmd := &cobra.Command{
		Use:   "add URL",
		Short: "send events to an endpoint",
		Long: `Sends events that happen from now on to an HTTPS endpoint, each as a request of its own, and prints
the secret that signs them: it is not shown again. With --user these are the events of one user's
mail, with --all those of all users and of the system.`,
		Example: `  postern webhook add https://shop.example.com/mail-events --user shop@example.com --kind failed --kind expired
  postern webhook add https://ops.example.com/hook --all --name ops`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			reach, err := s.reach()
			if err != nil {
				return err
			}
			u, err := reach.Allow.Parse(args[0])
			if err != nil {
				return err
			}
			n.URL, n.Name = args[0], name
			if name == "" {
				n.Name = strings.ToLower(u.Hostname())
			}
			if n.Kinds, err = events.KindsOf(kinds); err != nil {
				return err
			}
			return s.With(cmd.Context(), func(ctx context.Context, pool *pgxpool.Pool, actor string) error {
				if user != "" {
					u, err := auth.NewStore(pool).User(ctx, user)
					if err != nil {
						return err
					}
					n.UserID, n.User = u.ID, u.Name
				}
				sealer, err := s.Keys(ctx, pool)
				if err != nil {
					return err
				}
				secret, err := (&webhook.Store{DB: pool, Sealer: sealer, Actor: actor}).Add(ctx, n)
				if err != nil {
					return err
				}
				more := s.refused(ctx, n.URL)
				if more != "" {
					more += "\n"
				}
				return s.tell("added webhook "+n.Name, secret, more)
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&user, "user", "", "`NAME` of the user whose events are sent")
	f.BoolVar(&all, "all", false, "events of all users' mail, and of the system")
	f.StringVar(&name, "name", "", "`NAME` of the webhook (default: the endpoint's host)")
	limitFlags(cmd, &n.Limits)
	events.KindFlag(cmd, &kinds, "only events")
	cmd.MarkFlagsMutuallyExclusive("user", "all")
	cmd.MarkFlagsOneRequired("user", "all")
	return cmd
}

func limitFlags(cmd *cobra.Command, l *webhook.Limits) {
	cmd.Flags().IntVar(&l.Concurrency, "concurrency", webhook.Concurrency, "at most `N` requests at the same time")
	cmd.Flags().IntVar(&l.PerMinute, "per-minute", 0, "at most `N` requests per minute, 0 for no limit")
}

func (s Shell) set() *cobra.Command {
	var l webhook.Limits
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "change how much an endpoint is sent",
		Long: `Changes how many requests an endpoint is sent, at the same time and per minute. Retries count too. Events
that come faster are sent later, and none is left out.`,
		Example: "  postern webhook set shop --per-minute 60",
	}
	limitFlags(cmd, &l)
	cmd.MarkFlagsOneRequired("concurrency", "per-minute")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return s.store(cmd, false, func(ctx context.Context, store *webhook.Store) error {
			changed := func(flag string, value *int) *int {
				if cmd.Flags().Changed(flag) {
					return value
				}
				return nil
			}
			if err := store.Set(ctx, args[0], changed("concurrency", &l.Concurrency), changed("per-minute", &l.PerMinute)); err != nil {
				return err
			}
			_, err := fmt.Fprintf(s.Out, "webhook %s is changed\n", args[0])
			return err
		})
	}
	return cmd
}

func (s Shell) tell(done string, secret webhook.Secret, more string) error {
	_, err := fmt.Fprintf(s.Out, "%s\nsecret: %s\n(it is not shown again)\n%s", done, secret, more)
	return err
}

func (s Shell) rotate() *cobra.Command {
	return &cobra.Command{
		Use:   "rotate NAME",
		Short: "make a new secret",
		Long:  "Makes a new secret and prints it. For 24 hours requests have the signatures of both, so that receivers can change to the new one.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return s.store(cmd, true, func(ctx context.Context, store *webhook.Store) error {
				secret, until, err := store.Rotate(ctx, args[0])
				if err != nil {
					return err
				}
				return s.tell("changed the secret of webhook "+args[0], secret, "the former secret signs too until "+screen.LocalTime(until)+"\n")
			})
		},
	}
}

func (s Shell) test() *cobra.Command {
	var show bool
	cmd := &cobra.Command{
		Use:   "test NAME",
		Short: "send a sample event",
		Long: `Sends a signed event of the kind webhook.test from this machine, and prints the answer. It does so in
every state of the webhook, and changes nothing. The exit status is 0 if the event was taken. With
--print it sends nothing and prints the request, to try a receiver with.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			reach, err := s.reach()
			if err != nil {
				return err
			}
			return s.store(cmd, true, func(ctx context.Context, store *webhook.Store) error {
				secrets, endpoint, err := store.Secrets(ctx, args[0])
				if err != nil {
					return err
				}
				id, body, err := webhook.Sample(args[0], time.Now())
				if err != nil {
					return err
				}
				if show {
					return s.print(endpoint, webhook.Headers(secrets, id, time.Now(), body), body)
				}
				a, err := webhook.Send(ctx, reach, endpoint, secrets, id, body)
				if err != nil {
					return err
				}
				if a.Err != nil {
					return fmt.Errorf("the event was not taken: %w%s", a.Err, quoted(a.Body))
				}
				_, err = fmt.Fprintf(s.Out, "the event was taken: %d in %d ms%s\n", a.Status, a.Took.Milliseconds(), quoted(a.Body))
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&show, "print", false, "print the request, and send nothing")
	return cmd
}

func quoted(body string) string {
	if body == "" {
		return ""
	}
	return fmt.Sprintf(", %q", body)
}

func (s Shell) print(endpoint string, headers map[string]string, body []byte) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(s.Out, "POST %s HTTP/1.1\nHost: %s\nContent-Type: application/json\n", u.RequestURI(), u.Host)
	for _, name := range []string{webhook.HeaderID, webhook.HeaderTimestamp, webhook.HeaderSignature} {
		if err == nil {
			_, err = fmt.Fprintf(s.Out, "%s: %s\n", name, headers[name])
		}
	}
	if err == nil {
		_, err = fmt.Fprintf(s.Out, "\n%s", body)
	}
	return err
}

// mostBody bounds the request that 'webhook verify' reads, in octets.
const mostBody = 16 << 20

func (s Shell) verify() *cobra.Command {
	var id, stamp, signature string
	cmd := &cobra.Command{
		Use:   "verify NAME",
		Short: "check the signature of a request",
		Long: `Reads the body of a request from the standard input, and says whether its signature is right, or what is
wrong, as a receiver would. The flags take the values of its headers.`,
		Example: `  postern webhook verify shop --id "$id" --timestamp "$timestamp" --signature "$signature" <body.json`,
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := io.ReadAll(io.LimitReader(s.In, mostBody+1))
			if err == nil && len(body) > mostBody {
				err = refusal.Invalid("the body has more than %d octets", mostBody)
			}
			if err != nil {
				return err
			}
			return s.store(cmd, true, func(ctx context.Context, store *webhook.Store) error {
				secrets, _, err := store.Secrets(ctx, args[0])
				if err != nil {
					return err
				}
				headers := map[string]string{webhook.HeaderID: id, webhook.HeaderTimestamp: stamp, webhook.HeaderSignature: signature}
				if err := webhook.Verify(secrets, func(name string) string { return headers[name] }, body, time.Now()); err != nil {
					return err
				}
				_, err = fmt.Fprintln(s.Out, "the signature is right")
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&id, "id", "", "`ID`, the header webhook-id")
	f.StringVar(&stamp, "timestamp", "", "`SECONDS`, the header webhook-timestamp")
	f.StringVar(&signature, "signature", "", "`SIGNATURE`, the header webhook-signature")
	return cmd
}

// choice has the flags that choose events.
type choice struct {
	id, since, until string
	kinds            []string
}

func (c *choice) read(now time.Time) (chosen webhook.Choice, err error) {
	if c.id != "" {
		if chosen.ID, err = uuid.Parse(c.id); err != nil {
			return chosen, refusal.Invalid("--id: %q is not the id of an event", c.id)
		}
	}
	for _, one := range []struct {
		flag, text string
		at         *time.Time
	}{{"since", c.since, &chosen.Since}, {"until", c.until, &chosen.Until}} {
		if one.text == "" {
			continue
		}
		span, err := units.ParseSpan(one.text)
		if err != nil || span < 0 {
			return chosen, refusal.Invalid("--%s: %q is not a span of time such as 90m, 4h or 7d", one.flag, one.text)
		}
		*one.at = now.Add(-span)
	}
	chosen.Kinds, err = events.KindsOf(c.kinds)
	return chosen, err
}

func (s Shell) replay() *cobra.Command {
	var c choice
	var dry bool
	cmd := &cobra.Command{
		Use:   "replay NAME",
		Short: "send events again",
		Long: `Sends events of a span of time again, or one event by its id. They keep their ids. At most
10,000 events of a webhook may wait.`,
		Example: `  postern webhook replay shop --since 4h --until 1h --kind failed --dry-run
  postern webhook replay shop --id "$id"`,
		RunE: func(cmd *cobra.Command, args []string) error {
			chosen, err := c.read(time.Now())
			if err != nil {
				return err
			}
			return s.store(cmd, false, func(ctx context.Context, store *webhook.Store) error {
				do, format := store.Replay, "events to be sent again: %d\n"
				if dry {
					do, format = store.Count, "events that would be sent again: %d\n"
				}
				n, err := do(ctx, args[0], chosen)
				if err == nil && n == 0 && c.id != "" {
					err = errors.New("the feed has no such event for this webhook: see 'postern events'")
				}
				if err == nil {
					_, err = fmt.Fprintf(s.Out, format, n)
				}
				return err
			})
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.id, "id", "", "`ID` of the event")
	f.StringVar(&c.since, "since", "", "only what happened within this `SPAN`: 4d, 2h")
	f.StringVar(&c.until, "until", "", "but not within this shorter `SPAN`")
	f.BoolVar(&dry, "dry-run", false, "only count the events")
	events.KindFlag(cmd, &c.kinds, "only events")
	cmd.MarkFlagsOneRequired("since", "id")
	return cmd
}
