package desk

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/longtest"
	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
)

// backlog loads deferred recipients: with POSTERN_LONG=1 a million, over 10,000 destinations.
func backlog(t testing.TB) (db *pgtest.DB, conn *pgx.Conn) {
	t.Helper()
	db, rows := pgtest.New(t), 10_000
	if longtest.Run() {
		rows = 1_000_000
	}
	for from := 1; from <= rows; from += 10_000 {
		queuetest.Exec(t, db, pgtest.LoadBacklog, from, min(from+9999, rows), 10_000)
	}
	queuetest.Exec(t, db, `vacuum analyze`)
	own := pg.NewDedicated(db.Pool, pg.TuneWork)
	t.Cleanup(own.Close)
	conn, err := own.Get(queuetest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return db, conn
}

// TestBacklogOfOperators prints what it takes that admins ask for beside a queue of deferred
// mail, and fails when a statement reads what it has no use for.
func TestBacklogOfOperators(t *testing.T) {
	t.Parallel()
	db, conn := backlog(t)
	timed := func(what string, f func(context.Context) (any, error)) {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute) // a million rows on a busy machine
		defer cancel()
		begin := time.Now()
		n, err := f(ctx)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		t.Logf("%-24s %9.1f ms: %v", what, float64(time.Since(begin).Microseconds())/1000, n)
	}
	a := NewAdmin(db.Pool)
	timed("queue list", func(ctx context.Context) (any, error) { l, err := a.List(ctx, Filter{}); return len(l), err })
	timed("queue list --domain", func(ctx context.Context) (any, error) {
		l, err := a.List(ctx, Filter{Domain: "d7.example"})
		return len(l), err
	})
	timed("queue shape", func(ctx context.Context) (any, error) { l, err := a.Shape(ctx, 20); return len(l), err })
	timed("counts of a user", func(ctx context.Context) (any, error) { return a.Counts(ctx, 1) })
	timed("overview for metrics", func(ctx context.Context) (any, error) {
		o, err := NewReader(db.Pool).Overview(ctx)
		return len(o.Shares), err
	})
	timed("queue hold --user", func(ctx context.Context) (any, error) { return a.HoldUser(ctx, 2, 0, "test") })
	cost := func(name string, most int64, sql string, user int64) {
		t.Helper()
		pgtest.Cost(t, conn, name, most, sql, append((&Filter{UserID: user}).args(), operateRows, "test")...)
	}
	cost("hold 5,000 of a user", 100*operateRows, toHold.do, 3)
	cost("hold nothing of a user", 50, toHold.do, 99)
	cost("release nothing of a user", 50, toRelease.do, 99)
	pgtest.Cost(t, conn, "count nothing to release", 50, toRelease.count, (&Filter{UserID: 99}).args()...)
	timed("queue release --user", func(ctx context.Context) (any, error) { return a.ReleaseUser(ctx, 2) })
	timed("queue retry --domain", func(ctx context.Context) (any, error) { return a.Retry(ctx, Filter{Domain: "d7.example"}, true) })
}

// BenchmarkOverview reads what the metrics show, with POSTERN_LONG=1 of a queue of a million
// recipients, which a scrape does at most once in a while.
func BenchmarkOverview(b *testing.B) {
	db, _ := backlog(b)
	r := NewReader(db.Pool)
	for b.Loop() {
		o, err := r.Overview(queuetest.Context(b))
		if err != nil || len(o.Shares) == 0 {
			b.Fatal(o, err)
		}
	}
}

// What the queue has set aside is shown like other mail, whatever its row says (M8).
func TestM8BadRowsAreShown(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]string{
		"size":       `update message set size = -1`,
		"acceptance": `update message set accepted_at = 'infinity'`,
		"lifetime":   `update recipient set expires_at = 'infinity', accepted_at = '-infinity'`,
		"last try":   `update recipient set last_attempt_at = 'infinity', next_attempt_at = '4000-01-01 BC'`,
		"no message": `delete from message`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			for _, table := range []string{"recipient", "message", "node"} {
				queuetest.Exec(t, db, `do $$ declare c text; begin for c in select conname from pg_constraint where conrelid = '`+table+
					`'::regclass and contype = 'c' loop execute 'alter table `+table+` drop constraint ' || quote_ident(c); end loop; end $$`)
			}
			q := queuetest.Start(t, queuetest.HandConfig(db))
			m := queuetest.Message()
			queuetest.Put(t, q, m, false, "a@example.net")
			queuetest.Becomes(t, db, m.ID, "0 waiting")
			queuetest.Exec(t, db, `update recipient set held_at = now(), set_aside = 'it is bad'`)
			queuetest.Exec(t, db, spoil)
			ctx, a := queuetest.Context(t), NewAdmin(db.Pool).As("a person")
			list, err := a.List(ctx, Filter{State: StateHeld})
			if err != nil || len(list) != 1 || list[0].ID != m.ID || list[0].SetAside != "it is bad" {
				t.Fatalf("listed %+v, %v", list, err)
			}
			if h, err := a.Trace(ctx, m.ID); err != nil || len(h.Live) != 1 {
				t.Errorf("trace: %+v, %v", h, err)
			}
			if o, err := NewReader(db.Pool).Overview(ctx); err != nil || o.Aside != 1 {
				t.Errorf("overview: %+v, %v", o, err)
			}
			if _, err := a.Shape(ctx, 10); err != nil {
				t.Error(err)
			}
			if n, err := a.Cancel(ctx, Filter{State: StateHeld}, false); n != 1 || err != nil {
				t.Errorf("cancelled %d, %v", n, err)
			}
		})
	}
}
