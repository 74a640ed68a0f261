package main

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"postern/auth"
	"postern/policy"
	"postern/relay/maillog"
	"postern/relay/queue"
)

// nearLimit logs that a limit is nearly used up.
func (n *node) nearLimit(pool *pgxpool.Pool) func(queue.NearLimit) {
	return func(near queue.NearLimit) {
		limit := auth.Limit{Kind: limitKind(near.Kind), Window: near.Window, Max: near.Max}
		e := maillog.LimitEvent{Limit: string(limit.Kind) + " " + policy.FormatLimit(limit), Used: near.Used}
		// Whoever commits mail must not wait for the name.
		go func() {
			if near.Scope == queue.ChargeCredential {
				e.Credential = strconv.FormatInt(near.Subject, 10)
			} else {
				e.User = userName(pool, near.Subject)
			}
			n.mail.LimitNear(e)
		}()
	}
}

func limitKind(kind queue.ChargeKind) auth.LimitKind {
	switch kind {
	case queue.ChargeRecipients:
		return auth.LimitRecipients
	case queue.ChargeBytes:
		return auth.LimitBytes
	}
	return auth.LimitMessages
}

// held logs the beginning or the end of a hold.
func (n *node) held(pool *pgxpool.Pool, log func(maillog.HoldEvent)) func(queue.UserHold) {
	return func(h queue.UserHold) {
		log(maillog.HoldEvent{User: userName(pool, h.UserID), Reason: h.Reason})
	}
}

// userName is the name of a user for the log, or its number while the database does
// not tell.
func userName(pool *pgxpool.Pool, id int64) string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	name := strconv.FormatInt(id, 10)
	_ = pool.QueryRow(ctx, `select name from app_user where id = $1`, id).Scan(&name)
	return name
}
