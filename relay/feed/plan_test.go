package feed

import (
	"context"
	"testing"

	"postern/internal/pgtest"
)

// A page is found by the indexes of the feed, and reads no more rows than it has, whatever the
// statistics say and wherever in a long feed it is.
func TestPageUsesIndexes(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	for n := range 40 { // transactions of 500 rows each
		exec(t, db.Pool, insertMessage, 500*n+1, 500*n+500)
		exec(t, db.Pool, insertHistory, 500*n+1, 500*n+500, "delivered")
	}
	var middle, end int64
	must(t, db.Pool.QueryRow(t.Context(), `select (min(feed_at) + max(feed_at)) / 2, max(feed_at) + 1 from message`).Scan(&middle, &end))
	for _, stale := range []bool{true, false} {
		if !stale {
			exec(t, db.Pool, `analyze`)
		}
		tx, err := db.Pool.Begin(t.Context())
		must(t, err)
		var s state
		must(t, tx.QueryRow(t.Context(), sqlState, int64(0)).Scan(&s.incarnation, &s.gone, &s.goneAt, &s.horizon, &s.ended, &s.before, nil, nil, nil, nil, nil))
		plan := pgtest.Explain(t, tx, sqlPage, middle, 0, "", int64(0), end, 100)
		for _, index := range []string{"message_feed", "history_feed"} {
			if !plan.Uses(index) {
				t.Errorf("a page does not use %s: %v", index, plan)
			}
		}
		if rows := plan.RowsOf("message") + plan.RowsOf("history"); rows > 4000 {
			t.Errorf("a page of 100 rows reads %v: %v", rows, plan)
		}
		_ = tx.Rollback(context.Background())
	}
}
