package node

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/policy"
	"postern/relay/anomaly"
	"postern/relay/maillog"
	"postern/relay/queue"
	"postern/relay/submission"
)

// nearLimit logs that a limit is nearly used up.
func (n *Node) nearLimit(pool *pgxpool.Pool) func(queue.NearLimit) {
	return func(near queue.NearLimit) {
		limit := submission.LimitOf(near.Charge)
		e := maillog.LimitEvent{Limit: string(limit.Kind) + " " + policy.FormatLimit(limit), Used: near.Used}
		// A commit of mail must not wait for the name.
		go func() {
			_ = n.guard.Try("a limit that is near", func() error {
				if near.Scope == queue.ChargeCredential {
					e.Credential = strconv.FormatInt(near.Subject, 10)
				} else {
					e.User = userName(pool, near.Subject)
				}
				n.mail.LimitNear(e)
				return nil
			})
		}()
	}
}

// held logs the beginning or the end of a hold.
func (n *Node) held(pool *pgxpool.Pool, log func(maillog.HoldEvent)) func(queue.UserHold) {
	return func(h queue.UserHold) {
		e := maillog.HoldEvent{User: userName(pool, h.UserID), Reason: h.Reason, ByAnomaly: h.MadeBy == anomaly.By}
		if h.CredentialID != 0 {
			e.Credential = strconv.FormatInt(h.CredentialID, 10)
		}
		log(e)
	}
}

// userName is the name of a user for the log, or its number while the database does
// not tell.
func userName(pool *pgxpool.Pool, id int64) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if who, err := auth.NewStore(pool).Names(ctx, id); err == nil && who[id] != "" {
		return who[id]
	}
	return strconv.FormatInt(id, 10)
}
