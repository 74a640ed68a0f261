package queue

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/relay/smtp"
)

var sqlLostNotices = texts.Bind("lost_notices", "rows")

// LostNotice is a notice that was lost: the sender of some mail was not told what became of
// it. Its own sender is the null path, so there is no notice about it: an admin has to be told.
type LostNotice struct {
	ID    ID // of the notice
	About ID // the message that it was about
	Kind  NoticeKind
	Loss  string // how it ended: "failed", "expired" or "cancelled" by an operator
	To    smtp.Address
	Reply smtp.Reply // the last that it got; zero when it got none
}

const sqlLostNoticesTold = `update notice set told_at = now() where message_id = any($1::uuid[])`

const lostAtOnce = 100

// TellLost hands over the lost notices that nobody was told of yet, whichever process noted
// the loss. If it fails, or the process dies, they are told again.
func (q *Queue) TellLost(ctx context.Context, tell func(LostNotice)) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for more := true; more; {
		err := pgx.BeginFunc(ctx, q.cfg.WorkPool, func(tx pgx.Tx) error {
			rows, err := tx.Query(ctx, sqlLostNotices, lostAtOnce)
			if err != nil {
				return err
			}
			list, err := pgx.CollectRows(rows, scanLost)
			if more = len(list) == lostAtOnce; err != nil || len(list) == 0 {
				return err
			}
			ids := make([][16]byte, len(list))
			for i, lost := range list {
				tell(lost)
				ids[i] = lost.ID
			}
			_, err = tx.Exec(ctx, sqlLostNoticesTold, ids)
			return err
		})
		if err != nil {
			return fmt.Errorf("tell of lost notices: %w", err)
		}
	}
	return nil
}

func scanLost(row pgx.CollectableRow) (LostNotice, error) {
	var n LostNotice
	var code int
	var enhanced, text string
	err := row.Scan(&n.ID, &n.About, &n.Kind, &n.Loss, &n.To.Local, &n.To.Domain, &code, &enhanced, &text)
	if code > 0 {
		n.Reply = smtp.Reply{Code: code, Enhanced: smtp.ParseEnhancedCode(enhanced), Text: text}
	}
	return n, err
}
