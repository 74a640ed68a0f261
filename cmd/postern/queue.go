package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/story"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

func (a *app) queueCmd() *cobra.Command {
	return noun("queue", "manage the mail that waits or is being sent",
		a.queueListCmd(), a.queueShowCmd(), a.queueShapeCmd(), a.queueRetryCmd(), a.queueHoldCmd(), a.queueReleaseCmd(),
		a.queueCancelCmd(), a.queueResolveCmd(), a.queueHoldsCmd(), a.queueLostCmd())
}

// parseID reads a queue id as it stands in the 250 reply and in Received.
func parseID(s string) (queue.ID, error) {
	id, err := uuid.Parse(s)
	if err != nil || len(s) != 36 {
		return queue.ID{}, usagef("%q is not a queue id: an id such as 01890000-0000-7000-8000-000000000000 is in the 250 reply and in the Received field", s)
	}
	return id, nil
}

func (a *app) queueListCmd() *cobra.Command {
	var after string
	var chosen *selection
	var f desk.Filter
	cmd := listing[story.Entry]{
		head: story.EntryHead(), spare: story.EntrySpare(), row: story.EntryRow,
		check: func() (err error) {
			if f, err = chosen.filter(); err != nil {
				return err
			}
			f.AfterID, f.AfterN, err = parseAfter(after)
			return err
		},
		load: func(ctx context.Context, users *accounts, _ []string, limit int) ([]story.Entry, error) {
			if err := chosen.resolve(ctx, users.pool, &f); err != nil {
				return nil, err
			}
			f.Limit = limit
			return listQueue(ctx, users, f)
		},
		limit: 1000, of: "recipients",
		next: func(list []story.Entry, _ int) string {
			last := list[len(list)-1]
			return fmt.Sprintf("--after %s/%d", last.ID, last.N)
		},
	}.command(a, &cobra.Command{
		Use:   "list",
		Short: "list unfinished recipients, the oldest message first",
		Long: `Lists each recipient that is not finished. States: waiting for the next attempt, sending
(a node is working on it), held, and failed or delivered while the sender is still to be
notified. Mail that waits for an upstream's breaker is due as soon as that closes, even if
NEXT is later.

With several filters, lists the recipients that match all of them. 'postern queue shape'
summarizes a large queue.`,
		Example: `  postern queue list --domain example.net --older-than 4h
  postern queue list --user alice@example.com --state held --json
  postern queue list --in-doubt`,
		Args: noArguments,
	})
	chosen = selectionOf(cmd.Flags())
	cmd.Flags().StringVar(&after, "after", "", "start after message or recipient `ID[/N]`")
	return cmd
}

// parseAfter reads where a listing goes on: after a whole message, or one recipient.
func parseAfter(s string) (id queue.ID, n int, err error) {
	if s == "" {
		return id, 0, nil
	}
	text, number, one := strings.Cut(s, "/")
	if id, err = parseID(text); err != nil {
		return id, 0, err
	}
	n = math.MaxInt32
	if one {
		if n, err = strconv.Atoi(number); err != nil || n < 0 || n > math.MaxInt32 {
			return id, 0, usagef("--after: %q is not the number of a recipient", number)
		}
	}
	return id, n, nil
}

func listQueue(ctx context.Context, users *accounts, f desk.Filter) ([]story.Entry, error) {
	list, err := users.queue().List(ctx, f)
	if err != nil {
		return nil, err
	}
	who, err := users.Names(ctx, screen.Each(list, func(e desk.Entry) int64 { return e.UserID })...)
	return story.Entries(list, who), err
}

func (a *app) queueShowCmd() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "show ID",
		Short: "show a message and its recipients",
		Long: `Shows when and from whom a message was accepted, the state of each unfinished recipient,
and whether it is on hold. 'postern trace' shows the attempts too.`,
		Args: one("id", "a queue id"),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			return a.withUsers(cmd.Context(), func(ctx context.Context, users *accounts) error {
				h, err := users.queue().Show(ctx, id)
				if err != nil {
					return unknownMessage(id, err)
				}
				return a.tell(ctx, users, h, asJSON, func(s *story.Story) any { return s.Show() })
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

// allKnown finds ids that no message ever had: typing errors.
func allKnown(ctx context.Context, q *desk.Admin, ids []queue.ID) error {
	for _, id := range ids {
		if _, err := q.Show(ctx, id); err != nil {
			return unknownMessage(id, err)
		}
	}
	return nil
}

// unknownMessage says what desk.ErrNotFound means to a person. An id says when it was
// made (RFC 9562 section 5.7).
func unknownMessage(id queue.ID, err error) error {
	if !errors.Is(err, desk.ErrNotFound) {
		return err
	}
	old := ""
	if made := time.UnixMilli(int64(binary.BigEndian.Uint64(id[:8]) >> 16)); id.Version() == 7 && time.Since(made) > time.Hour {
		old = "; its id was made on " + screen.LocalTime(made) + "; history is deleted after queue.history"
	}
	return fmt.Errorf("no message %s is in the queue or in its history%s", id, old)
}
