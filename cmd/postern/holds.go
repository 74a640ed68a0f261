package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/cmd/postern/story"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

func (a *app) queueHoldsCmd() *cobra.Command {
	return listing[story.Hold]{
		head: []string{"USER", "CREDENTIAL", "SINCE", "BY", "REASON"},
		row:  story.HoldRow,
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]story.Hold, error) {
			list, err := users.queue().UserHolds(ctx)
			if err != nil {
				return nil, err
			}
			who, err := users.Names(ctx, screen.Each(list, func(h queue.UserHold) int64 { return h.UserID })...)
			return story.Holds(list, who), err
		},
	}.command(a, &cobra.Command{
		Use:   "holds",
		Short: "list the users and credentials that are on hold",
		Long: `Lists the holds of users, and of single credentials, whose mail waits for an admin:
those of 'queue hold --user', of a user that was disabled, of a credential that was
revoked, and of anomaly detection. 'postern queue list --state held' lists the mail
itself. 'postern queue release --user U' ends the holds of a user and releases the mail,
'postern queue cancel --user U' deletes it.`,
		Args: noArguments,
	})
}

// holdsOf are the holds of a user and of its credentials.
func holdsOf(ctx context.Context, q *desk.Admin, userID int64) ([]queue.UserHold, error) {
	holds := []queue.UserHold{} // in JSON [], not null
	all, err := q.UserHolds(ctx)
	for _, h := range all {
		if h.UserID == userID {
			holds = append(holds, h)
		}
	}
	return holds, err
}

// holdsOver are the holds that keep mail that comes by one of a user's credentials.
func holdsOver(ctx context.Context, q *desk.Admin, userID, credentialID int64) ([]queue.UserHold, error) {
	holds, err := holdsOf(ctx, q, userID)
	return slices.DeleteFunc(holds, func(h queue.UserHold) bool { return h.CredentialID != 0 && h.CredentialID != credentialID }), err
}
