package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/auth"
	"postern/cmd/postern/database"
	"postern/cmd/postern/screen"
	"postern/cmd/postern/story"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

func (a *app) traceCmd() *cobra.Command {
	var asJSON bool
	var limit int
	cmd := &cobra.Command{
		Use:   "trace ID|MESSAGE-ID|ADDRESS",
		Short: "show the history of a message",
		Long: `Shows when and from whom a message was accepted, by which rule, and how much of
each limit was used. It also shows every attempt with the reply of the server, each
upstream that was given up, with the reason, and the recipients that are not finished.
Finished mail can be traced for as long as queue.history in the configuration says.

ID is the queue id from the 250 reply or the Received field. A Message-ID field, or an
envelope address of the sender or a recipient, may match several messages: they are
listed, the newest first.`,
		Example: `  postern trace 01890000-0000-7000-8000-000000000000
  postern trace '<20260102.3@example.com>'
  postern trace bob@example.net --limit 5`,
		Args: one("message", "a queue id, a Message-ID or an address"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 1 {
				return usagef("--limit must be at least 1")
			}
			id, err := parseID(args[0])
			if err != nil && !strings.Contains(args[0], "@") && !strings.HasPrefix(args[0], "<") {
				return usagef("%q is not a queue id, Message-ID or address", args[0])
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				if err == nil {
					return a.trace(ctx, users, id, asJSON)
				}
				return a.find(ctx, users, args[0], limit, asJSON)
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON: an object for one message, a list for several")
	cmd.Flags().IntVar(&limit, "limit", 20, "list at most `N` messages")
	return cmd
}

// trace tells of one message.
func (a *app) trace(ctx context.Context, users *accounts, id queue.ID, asJSON bool) error {
	h, err := users.queue().Trace(ctx, id)
	if err != nil {
		return unknownMessage(id, err)
	}
	return a.tell(ctx, users, h, asJSON, func(s *story.Story) any { return s.Trace() })
}

// tell prints a history, or as JSON what view makes of it.
func (a *app) tell(ctx context.Context, users *accounts, h *desk.History, asJSON bool, view func(*story.Story) any) error {
	s, err := storyOf(ctx, users, h)
	if err != nil {
		return err
	}
	if asJSON {
		return screen.JSON(a.stdout, view(s))
	}
	return s.Print(a.stdout)
}

// storyOf reads what people want to know besides a history.
func storyOf(ctx context.Context, users *accounts, h *desk.History) (*story.Story, error) {
	who, err := users.Names(ctx, h.Message.UserID)
	s := &story.Story{History: h, User: who[h.Message.UserID]}
	if err != nil || h.Done() {
		return s, err
	}
	s.Held, err = holdsOver(ctx, users.queue(), h.Message.UserID, h.Message.CredentialID)
	return s, err
}

// find traces the one message with a Message-ID or an address, or lists several.
func (a *app) find(ctx context.Context, users *accounts, what string, limit int, asJSON bool) error {
	q := users.queue()
	ids, err := q.Find(ctx, what, limit+1) // one more, to know whether there are more
	if err != nil {
		return err
	}
	more := len(ids) > limit
	ids = ids[:min(limit, len(ids))]
	switch {
	case len(ids) == 0:
		return fmt.Errorf("no message with Message-ID or address %s is in the queue or in its history", what)
	case len(ids) == 1 && !more:
		return a.trace(ctx, users, ids[0], asJSON)
	}
	list, err := q.Summaries(ctx, ids)
	if err != nil {
		return err
	}
	who, err := users.Names(ctx, screen.Each(list, func(s desk.Summary) int64 { return s.UserID })...)
	if err != nil {
		return err
	}
	found := story.Summaries(list, who)
	if asJSON {
		return screen.JSON(a.stdout, found)
	}
	if err := story.PrintSummaries(a.stdout, found); err != nil || !more {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "There are more than %d: --limit shows more.\n", limit)
	return err
}

// traceWhenDone prints the trace of a message as soon as nothing is left to be done
// for it, or what there is when ctx ends.
func (a *app) traceWhenDone(ctx context.Context, url string, id queue.ID) error {
	pool, err := a.database.OpenPool(ctx, url, "trace", 1, nil)
	if err != nil {
		return err
	}
	defer pool.Close()
	users := &accounts{Store: auth.NewStore(pool), pool: pool}
	for {
		h, err := users.queue().Trace(ctx, id)
		if err != nil {
			return err
		}
		if h.Done() {
			return a.printTrace(ctx, users, h)
		}
		select {
		case <-ctx.Done():
			return errors.Join(a.printTrace(context.WithoutCancel(ctx), users, h), errors.New("the message is not finished"))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (a *app) printTrace(ctx context.Context, users *accounts, h *desk.History) error {
	ctx, cancel := context.WithTimeout(ctx, database.ConnectTime)
	defer cancel()
	return a.tell(ctx, users, h, false, nil)
}
