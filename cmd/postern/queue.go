package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/spf13/cobra"

	"postern/relay/queue"
)

func (a *app) queueCmd() *cobra.Command {
	return noun("queue", "mail that waits or is being sent",
		a.queueListCmd(), a.queueShowCmd(), a.queueRetryCmd())
}

func (a *app) withQueue(ctx context.Context, do func(ctx context.Context, q *queue.Admin) error) error {
	return a.withPool(ctx, func(ctx context.Context, pool *pgxpool.Pool) error {
		return do(ctx, queue.NewAdmin(pool))
	})
}

// parseID reads a queue id as it stands in the 250 reply and in Received.
func parseID(s string) (queue.ID, error) {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return queue.ID{}, usagef("%q is no queue id: it looks like 01890000-0000-7000-8000-000000000000 and stands in the 250 reply and in the Received field", s)
	}
	return id, nil
}

var queueStates = []queue.State{queue.StateWaiting, queue.StateOwned, queue.StateHeld, queue.StateFailed, queue.StateDelivered}

func (a *app) queueListCmd() *cobra.Command {
	var asJSON bool
	var state string
	var f queue.Filter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "list recipients that are not finished, the oldest message first",
		Long: `Lists each recipient for whom something is still to be done. States: waiting for
the next attempt, sending (a node has it in hand), held, failed or delivered (the
sender is still to be told). docs/queue-states.md explains them.`,
		Args: noArguments,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f.State = queue.State(state)
			if f.State != "" && !slices.Contains(queueStates, f.State) {
				return usagef("--state is one of %v, not %q", queueStates, state)
			}
			if f.Limit < 1 {
				return usagef("--limit must be at least 1")
			}
			return a.withQueue(cmd.Context(), func(ctx context.Context, q *queue.Admin) error {
				list, err := q.List(ctx, f)
				if err != nil {
					return err
				}
				if asJSON {
					return printJSON(a.stdout, emptyList(list))
				}
				return a.printEntries(list)
			})
		},
	}
	fl := cmd.Flags()
	fl.BoolVar(&asJSON, "json", false, "print JSON")
	fl.StringVar(&state, "state", "", "only recipients in this `state`")
	fl.StringVar(&f.Domain, "domain", "", "only recipients of this `domain`")
	fl.IntVar(&f.Limit, "limit", 1000, "print at most `N` recipients")
	return cmd
}

func (a *app) printEntries(list []queue.Entry) error {
	t := table{head: []string{"ID", "STATE", "ACCEPTED", "SENDER", "RECIPIENT", "TRIES", "NEXT", "LAST REPLY"}}
	for _, e := range list {
		next := "-"
		if e.State == queue.StateWaiting {
			next = localTime(e.NextAttemptAt)
		}
		t.add(e.ID.String(), string(e.State), localTime(e.AcceptedAt), "<"+e.Sender+">", e.Recipient,
			strconv.Itoa(e.Attempts), next, orDash(shorten(e.LastReply, 80)))
	}
	return t.print(a.stdout)
}

// shorten cuts s to n runes for a table.
func shorten(s string, n int) string {
	runes := []rune(s)
	if len(runes) <= n {
		return s
	}
	return string(runes[:n-1]) + "…"
}

func (a *app) queueShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "show a message and its recipients",
		Long: `Shows when and from whom a message was accepted and what is still to be done for
each recipient. 'postern trace' tells of the attempts too.`,
		Args: exactly(1, "a queue id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.showMessage(cmd.Context(), args[0], asJSON, (*queue.Admin).Show)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) traceCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "trace ID",
		Short: "tell what became of a message",
		Long: `Tells when and from whom a message was accepted, every attempt with the reply
of the server, and what is still to be done. ID stands in the 250 reply and in the
Received field. Finished mail can be traced for as long as [queue] history says.`,
		Args: exactly(1, "a queue id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.showMessage(cmd.Context(), args[0], asJSON, (*queue.Admin).Trace)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// showMessage prints what look finds about one message.
func (a *app) showMessage(ctx context.Context, arg string, asJSON bool, look func(*queue.Admin, context.Context, queue.ID) (*queue.History, error)) error {
	id, err := parseID(arg)
	if err != nil {
		return err
	}
	return a.withQueue(ctx, func(ctx context.Context, q *queue.Admin) error {
		h, err := look(q, ctx, id)
		if err != nil {
			return unknownMessage(id, err)
		}
		if asJSON {
			h.Live, h.Attempts = emptyList(h.Live), emptyList(h.Attempts)
			return printJSON(a.stdout, h)
		}
		return a.printHistory(h)
	})
}

func (a *app) printHistory(h *queue.History) error {
	m := h.Message
	t := table{head: []string{"MESSAGE", m.ID.String()}}
	t.add("accepted", localTime(m.AcceptedAt)+" by "+m.Node)
	t.add("from", "<"+m.Sender+">")
	t.add("recipients", strconv.Itoa(m.Recipients))
	t.add("size", strconv.FormatInt(m.Size, 10))
	t.add("Message-ID", orDash(m.MessageID))
	t.add("client", orDash(m.ClientAddr)+" "+orDash(m.ClientHello)+" "+orDash(m.TLS))
	if m.VoidedAt != nil {
		t.add("refused", localTime(*m.VoidedAt)+": the client was told 451 after all; it is not delivered")
	}
	if err := t.print(a.stdout); err != nil {
		return err
	}
	if len(h.Attempts) > 0 {
		fmt.Fprintln(a.stdout)
		if err := a.printAttempts(h.Attempts); err != nil {
			return err
		}
	}
	if len(h.Live) > 0 {
		fmt.Fprintln(a.stdout)
		return a.printEntries(h.Live)
	}
	fmt.Fprintln(a.stdout, "\nNothing is left to be done.")
	return nil
}

func (a *app) printAttempts(list []queue.Attempt) error {
	t := table{head: []string{"WHEN", "RECIPIENT", "RESULT", "VIA", "SERVER", "TLS", "REPLY"}}
	for _, at := range list {
		result := at.Result
		for _, mark := range []struct {
			set  bool
			text string
		}{{at.OutcomeUnknown, "outcome unknown"}, {at.PossibleDuplicate, "possible duplicate"}, {at.Fenced, "fenced"}} {
			if mark.set {
				result += ", " + mark.text
			}
		}
		server := at.RemoteMTA
		if at.RemoteAddr != "" {
			server = strings.TrimSpace(server + " [" + at.RemoteAddr + "]")
		}
		t.add(localTime(at.At), at.Recipient, result, orDash(at.Upstream), orDash(server), orDash(at.TLS), orDash(at.Reply))
	}
	return t.print(a.stdout)
}

func (a *app) queueRetryCmd() *cobra.Command {
	var all bool
	cmd := &cobra.Command{
		Use:   "retry ID... | --all",
		Short: "try waiting mail now instead of at its next attempt",
		Long: `Makes the waiting recipients of the messages due, or with --all those of the whole
queue. A running server takes them up at once; without one they are tried when it
starts. Held mail stays held, and mail that is being sent is left alone.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if all == (len(args) > 0) {
				return usagef("'postern queue retry' needs queue ids, or --all")
			}
			var ids []queue.ID
			for _, arg := range args {
				id, err := parseID(arg)
				if err != nil {
					return err
				}
				ids = append(ids, id)
			}
			return a.withQueue(cmd.Context(), func(ctx context.Context, q *queue.Admin) error {
				if err := allKnown(ctx, q, ids); err != nil {
					return err
				}
				n, err := q.Retry(ctx, queue.Filter{IDs: ids}, false)
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.stdout, "%d waiting recipients are due now\n", n)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "all waiting mail")
	return cmd
}

// allKnown finds ids that no message ever had: typing errors.
func allKnown(ctx context.Context, q *queue.Admin, ids []queue.ID) error {
	for _, id := range ids {
		if _, err := q.Show(ctx, id); err != nil {
			return unknownMessage(id, err)
		}
	}
	return nil
}

// unknownMessage says what queue.ErrNotFound means to a person.
func unknownMessage(id queue.ID, err error) error {
	if errors.Is(err, queue.ErrNotFound) {
		return fmt.Errorf("no message %s is in the queue or in its history", id)
	}
	return err
}

// traceWhenDone prints the trace of a message as soon as nothing is left to be done
// for it, or what there is when ctx ends.
func (a *app) traceWhenDone(ctx context.Context, url string, id queue.ID) error {
	pool, err := openPool(ctx, url, "trace", 1, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	q := queue.NewAdmin(pool)
	for {
		h, err := q.Trace(ctx, id)
		if err != nil {
			return err
		}
		if h.Done() {
			return a.printHistory(h)
		}
		select {
		case <-ctx.Done():
			return errors.Join(a.printHistory(h), errors.New("the message is not finished"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}
