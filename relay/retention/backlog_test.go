package retention

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/queue/content"
)

// backlogRows is how many recipients are deferred: with POSTERN_LONG=1 a million.
func backlogRows() int {
	if longtest.Run() {
		return 1_000_000
	}
	return 10_000
}

// TestForgettingCosts prints what the statements take beside a queue of deferred mail, and
// fails when one reads what it has no use for.
func TestForgettingCosts(t *testing.T) {
	t.Parallel()
	db, rows := pgtest.New(t), backlogRows()
	for from := 1; from <= rows; from += 10_000 {
		queuetest.Exec(t, db, pgtest.LoadBacklog, from, min(from+9999, rows), 10_000)
	}
	for _, sql := range []string{ // young, and so not to be deleted
		`insert into activity (user_id, hour) select u, now() - h * interval '1 hour' from generate_series(1, $1::int / 100) u, generate_series(1, 100) h`,
		`insert into correspondent (user_id, recipient) select g % 10, sha256(g::text::bytea) from generate_series(1, $1::int) g`,
		`insert into usage_window (scope, subject, kind, window_s, at, n)
			select 'user', g, 'messages', 3600, array[floor(extract(epoch from now()) / 60)::bigint], array[1] from generate_series(1, $1::int) g`,
	} {
		queuetest.Exec(t, db, sql, max(10_000, rows/10))
	}
	queuetest.Exec(t, db, `vacuum analyze`)
	conn := working(t, db)
	cost := func(name string, most int64, sql string, args ...any) {
		t.Helper()
		pgtest.Cost(t, conn, name, most, sql, args...)
	}
	queuetest.Exec(t, db, `update history_walk set past = default, next_at = now()`)
	cost("forget history, nothing", 10_000, sqlForget, queue.FirstID(time.Now().Add(-50*365*24*time.Hour)), forgetMost, time.Now(), forgetAttempts, time.Second, time.Second)
	queuetest.Exec(t, db, `update history_walk set past = default, next_at = now()`)
	cost("forget history, all live", 30*forgetMost, sqlForget, queue.FirstID(time.Now()), forgetMost, time.Now(), forgetAttempts, time.Second, time.Second)
	cost("orphans", 20*orphanRows, sqlOrphans, queue.ID{}, orphanRows)
	cost("forget nodes", 50, sqlForgetNodes)
	cost("forget holds", 50, sqlForgetHolds)
	cost("forget usage", 10*forgetRows, sqlForgetUsage, "", "", "", 0, forgetRows)
	cost("forget activity", 50, sqlForgetActivity, forgetRows)
	cost("forget correspondents", 50, sqlForgetCorrespondents, forgetRows, 365*24*time.Hour)
}

// TestForgettingBesideNewMail compares the life of new mail while old history is deleted with
// that while it is not, in turns. The history is old and its mail is finished.
func TestForgettingBesideNewMail(t *testing.T) {
	t.Parallel()
	db, messages := pgtest.New(t), 60
	if longtest.Run() {
		messages = 4000
	}
	q := queuetest.Start(t, queuetest.Config(db))
	past(t, db, backlogRows()/5, 60, "false")
	old := func() int {
		return queuetest.Count(t, db, `select count(*) from message where accepted_at < now() - interval '30 days'`)
	}
	r := New(Config{Pool: db.Pool})
	var rate []float64
	deleted, busy := 0, time.Duration(0)
	for range 5 {
		without := round(t, q, messages)
		before := old()
		queuetest.Exec(t, db, `update history_walk set past = default, next_at = now()`)
		ctx, cancel := context.WithCancel(queuetest.Context(t))
		var done sync.WaitGroup
		done.Go(func() { forgetUntil(ctx, t, r) })
		with := round(t, q, messages)
		if before > 0 {
			queuetest.Eventually(t, "some history is deleted", func() bool { return old() < before })
		}
		cancel()
		done.Wait()
		rate = append(rate, without.Seconds()/with.Seconds())
		deleted += before - old()
		busy += with
	}
	slices.Sort(rate)
	t.Logf("new mail while history is deleted, to when it is not: rate %.2f (%.2f to %.2f); %.0f messages/s were deleted, %d in a batch at last",
		rate[2], rate[0], rate[4], float64(deleted)/busy.Seconds(), r.rows)
	if deleted == 0 {
		t.Error("no history was deleted")
	}
}

// forgetUntil is what run does while there is something to be deleted.
func forgetUntil(ctx context.Context, t *testing.T, r *Retention) {
	defer r.conn.Close()
	for ctx.Err() == nil {
		pause, err := r.round(ctx)
		if err != nil && ctx.Err() == nil {
			t.Error(err)
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(max(pause, time.Millisecond)):
		}
	}
}

// round accepts and delivers messages, and says how long that took.
func round(t *testing.T, q *queue.Queue, messages int) time.Duration {
	left := make(chan struct{}, messages)
	for range messages {
		left <- struct{}{}
	}
	close(left)
	begin := time.Now()
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			for range left {
				accepted, err := q.Enqueue(context.Background(), queuetest.Message(), queuetest.Recipients("bob@example.net"), content.New(make([]byte, 5000)), true)
				if err != nil {
					t.Error(err)
					return
				}
				q.Settle(queuetest.Outcome(accepted.Delivery, 0, queue.Delivered))
			}
		})
	}
	all.Wait()
	queuetest.Eventually(t, "all is settled", func() bool { return q.Stats().InHand == 0 })
	return time.Since(begin)
}
