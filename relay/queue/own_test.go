package queue

import (
	"context"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// A message of ours and its record are one transaction, whichever way the database fails, and a record
// that is not wanted undoes nothing else.
func TestEnqueueOwn(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]faults{
		"well":                {},
		"not persisted":       {commit: pg.Faults{Before: once(cut)}},
		"persisted but error": {commit: pg.Faults{After: once(cut)}},
		"backend killed":      {commit: pg.Faults{Before: once(terminate)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			exec(t, db, `create table sent (id uuid)`)
			q := start(t, calmConfig(db), func(q *Queue) { q.faults = fault })
			for _, wanted := range []bool{true, false} {
				m := message()
				m.ID, m.Sender = NewID(), smtp.Address{}
				list := rcpts("a@example.net", "b@example.net")
				sent, err := q.EnqueueOwn(ctxOf(t), m, list, []byte("Subject: x\r\n\r\nx\r\n"), func(ctx context.Context, tx pgx.Tx) (bool, error) {
					if !wanted {
						return false, nil
					}
					_, err := tx.Exec(ctx, `insert into sent values ($1)`, m.ID)
					return true, err
				})
				if err != nil || sent != wanted {
					t.Errorf("wanted %v: %v, %v", wanted, sent, err)
				}
			}
			got := fmt.Sprint(count(t, db, `select count(*) from sent`), count(t, db, `select count(*) from message join sent using (id)`),
				count(t, db, `select count(*) from message`), count(t, db, `select count(*) from recipient where owner is null and tell = 0`))
			if got != "1 1 1 2" {
				t.Errorf("records, their messages, messages, recipients: %s", got)
			}
		})
	}
}
