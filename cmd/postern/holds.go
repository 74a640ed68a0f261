package main

import (
	"context"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"postern/cmd/postern/screen"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

func (a *app) queueHoldsCmd() *cobra.Command {
	return listing[holdView]{
		head: []string{"USER", "CREDENTIAL", "SINCE", "BY", "REASON"},
		row:  holdRow,
		load: func(ctx context.Context, users *accounts, _ []string, _ int) ([]holdView, error) {
			list, err := users.queue().UserHolds(ctx)
			if err != nil {
				return nil, err
			}
			var ids []int64
			for _, h := range list {
				ids = append(ids, h.UserID)
			}
			who, err := userNames(ctx, users.pool, ids...)
			return holdViews(list, who), err
		},
	}.command(a, &cobra.Command{
		Use:   "holds",
		Short: "list the users and credentials that are on hold",
		Long: `Lists the holds of users, and of single credentials, whose mail waits for an
admin: those of 'queue hold --user', of a user that was disabled, of a credential
that was revoked, and of anomaly detection. 'postern queue list --state held' lists the
mail itself. 'postern queue release --user U' ends the holds of a user and lets the
mail go, 'postern queue cancel --user U' throws it away.`,
		Args: noArguments,
	})
}

// holdView is a hold as --json prints it.
type holdView struct {
	queue.UserHold
	User string `json:"user,omitempty"` // its name
}

func holdViews(list []queue.UserHold, who names) []holdView {
	views := make([]holdView, 0, len(list))
	for _, h := range list {
		views = append(views, holdView{h, who[h.UserID]})
	}
	return views
}

func holdRow(h holdView) []string {
	credential := "all"
	if h.CredentialID != 0 {
		credential = strconv.FormatInt(h.CredentialID, 10)
	}
	return []string{userText(h.UserID, h.User), credential, screen.LocalTime(h.MadeAt), h.MadeBy, screen.OrDash(h.Reason)}
}

// holdsOf are the holds of a user and of its credentials.
func holdsOf(ctx context.Context, q *desk.Admin, userID int64) ([]queue.UserHold, error) {
	all, err := q.UserHolds(ctx)
	return emptyList(slices.DeleteFunc(all, func(h queue.UserHold) bool { return h.UserID != userID })), err
}
