package node

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/policy/quota"
	"postern/relay/anomaly"
	"postern/relay/maillog"
	"postern/relay/queue"
)

// nearLimit logs that a limit is nearly used up.
func (n *Node) nearLimit(pool *pgxpool.Pool) func(quota.Near) {
	return func(near quota.Near) {
		e := maillog.LimitEvent{Limit: near.String(), Used: near.Used}
		// A commit of mail must not wait for the name.
		go func() {
			_ = n.guard.Try("a limit that is near", func() error {
				switch near.Scope {
				case quota.Credential:
					e.Credential = near.Subject
				case quota.Domain:
					e.Domain = near.Subject
				default:
					id, _ := strconv.ParseInt(near.Subject, 10, 64)
					e.User = userName(pool, id)
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
