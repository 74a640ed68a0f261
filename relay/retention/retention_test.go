package retention

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pg"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/feed"
	"postern/relay/queue"
)

// past fills the history with n messages that ended so many days ago, each with an
// attempt. Those for which live holds (an SQL condition on g, from 1) are held still.
func past(t *testing.T, db *pgtest.DB, n, days int, live string) {
	t.Helper()
	queuetest.Exec(t, db, fmt.Sprintf(`
with new as materialized (select g, (lpad(to_hex((extract(epoch from now() - interval '%[2]d days') * 1000)::bigint), 12, '0')
		|| '70008000000000' || lpad(to_hex(g), 6, '0'))::uuid as id from generate_series(1, %[1]d) g),
m as (insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
	select id, 1, 1, 'a', 'example.com', 1, '', false, '', '', '', now() - interval '%[2]d days', '', '', '', '', 'a', 1 from new),
a as (insert into history (message_id, n, at, epoch, result) select id, 0, now() - interval '%[2]d days', 1, 'deferred' from new)
insert into recipient (message_id, n, user_id, held_at, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
select id, 0, 1, now(), now(), 0, 0, 'x', 'x', 'x', '', '' from new where %[3]s`, n, days, live))
}

// walk has every batch come immediately, to the end.
func walk(t *testing.T, db *pgtest.DB, r *Retention, conn *pgx.Conn) (batches int) {
	t.Helper()
	for {
		queuetest.Exec(t, db, `update history_walk set next_at = now()`)
		more, err := r.history(queuetest.Context(t), conn)
		if err != nil {
			t.Fatal(err)
		}
		if batches++; more == 0 {
			return batches
		}
	}
}

func left(t *testing.T, db *pgtest.DB) string {
	t.Helper()
	return fmt.Sprintf("%d messages, %d attempts", queuetest.Count(t, db, `select count(*) from message`), queuetest.Count(t, db, `select count(*) from history`))
}

// Deletion walks past messages that cannot go yet, and comes back for them.
func TestHistoryWalksPastHeldMail(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	r, conn := New(Config{Pool: db.Pool}), working(t, db)
	past(t, db, 1000, 40, "g <= 300 or g = 1000") // the oldest are held: more than a batch looks at
	past(t, db, 10, 29, "false")                  // young
	if n := walk(t, db, r, conn); n < 3 {
		t.Errorf("%d batches", n)
	}
	if got := left(t, db); got != "311 messages, 311 attempts" {
		t.Fatalf("%s are left", got)
	}
	if n := queuetest.Count(t, db, `select count(*) from message m join history a on a.message_id = m.id join recipient r on r.message_id = m.id`); n != 301 {
		t.Fatalf("%d held messages have their history", n)
	}

	// Mail that ends now can be traced for the whole time, from now.
	if n := queuetest.Count(t, db, `
with gone as (delete from recipient returning message_id, n), -- as an operator's cancel does
h as (insert into history (message_id, n, at, epoch, result) select message_id, n, now(), 0, 'cancel' from gone)
select count(*) from gone`); n != 301 {
		t.Fatalf("cancelled %d", n)
	}
	anHourLater := func() {
		queuetest.Exec(t, db, `update history_walk set began_at = now() - interval '2 hours'`)
		walk(t, db, r, conn) // comes to the end, and is to begin with the oldest
		walk(t, db, r, conn)
	}
	anHourLater()
	if got := left(t, db); got != "311 messages, 612 attempts" {
		t.Fatalf("%s are left after the end", got)
	}
	queuetest.Exec(t, db, `update history set at = at - interval '31 days' where result = 'cancel'`)
	walk(t, db, r, conn)
	if got := left(t, db); got != "311 messages, 612 attempts" {
		t.Fatalf("%s are left: within an hour it looked at the oldest again", got)
	}
	anHourLater()
	if got := left(t, db); got != "10 messages, 10 attempts" {
		t.Fatalf("%s are left at last", got)
	}
}

// One batch deletes a bounded number of rows, however many a message has; the
// message goes with the last of them. Attempts without a message go too.
func TestHistoryInBoundedBatches(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	r, conn := New(Config{Pool: db.Pool}), working(t, db)
	past(t, db, 3, 40, "false")
	queuetest.Exec(t, db, `insert into history (message_id, n, at, epoch, result) select id, n, now() - interval '40 days', 2, 'deferred'
		from (select id from message order by id limit 1) m, generate_series(1, $1::int) n`, 2*forgetAttempts)
	queuetest.Exec(t, db, `delete from message where id = (select id from message order by id desc limit 1)`)
	for _, want := range []string{
		fmt.Sprintf("2 messages, %d attempts", forgetAttempts+3), "2 messages, 3 attempts", "0 messages, 0 attempts", "0 messages, 0 attempts",
	} {
		queuetest.Exec(t, db, `update history_walk set next_at = now()`)
		more, err := r.history(queuetest.Context(t), conn)
		if got := left(t, db); err != nil || got != want {
			t.Fatalf("%s are left, want %s; %v", got, want, err)
		}
		if (more > 0) != (want[0] == '2') {
			t.Errorf("with %s left it wants to go on in %v", want, more)
		}
	}
}

// Several nodes delete one history together, while their connections are cut and mail
// ends: nothing is deleted that must stay, nothing stays, and nobody waits for a deadlock.
func TestHistoryOfSeveralNodes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	past(t, db, 6000, 40, "g % 50 = 0")
	ctx, cancel := context.WithCancel(queuetest.Context(t))
	defer cancel()
	var all sync.WaitGroup
	var cut int
	for range 3 {
		r := New(Config{Pool: db.Pool})
		r.every = 10 * time.Millisecond
		all.Go(func() {
			defer r.conn.Close()
			for ctx.Err() == nil {
				r.rows = forgetLeast // many batches
				if _, err := r.round(ctx); err != nil && ctx.Err() == nil {
					if pg.Class(err) == "40" {
						t.Errorf("nodes are in each other's way: %v", err)
					}
					r.conn.Drop()
				}
			}
		})
	}
	queuetest.Eventually(t, "the history is gone", func() bool {
		if cut < 10 {
			cut += queuetest.Count(t, db, `select count(pg_terminate_backend(pid)) from pg_stat_activity
				where datname = current_database() and query like '%history_walk%' and pid <> pg_backend_pid() and state = 'active'`)
		}
		return queuetest.Count(t, db, `select count(*) from message`) <= 120
	})
	cancel()
	all.Wait()
	if cut == 0 {
		t.Error("no connection was cut within a batch")
	}
	if got := left(t, db); got != "120 messages, 120 attempts" {
		t.Errorf("%s are left", got)
	}
}

// The smaller tables lose what is of no use, and keep the rest.
func TestForgetOthers(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	held, waits := queuetest.Message(), queuetest.Message()
	held.CredentialID = 9 // owned: it may come back
	queuetest.Put(t, q, held, true, "a@example.net")
	waits.CredentialID = 8 // nothing of it is held
	queuetest.Put(t, q, waits, false, "b@example.net")
	abandon(t, db, q, held.ID)
	r, conn := New(Config{Pool: db.Pool}), working(t, db)
	for _, sql := range []string{
		`insert into hold (user_id, credential_id, reason, made_by, made_at)
			select u, c, '', '', now() - interval '1 hour' from (values (1, 0), (1, 7), (1, 8), (1, 9), (2, 9)) h(u, c)`,
		`insert into node (name, expires_at, reaped_at) select 'old', now(), now() - h * interval '31 minutes' from generate_series(0, 5) h`,
		`insert into activity (user_id, hour) select u, now() - d * interval '1 day' from generate_series(1, 200) u, generate_series(0, 19) d`,
		`insert into duplicate (key, message_id, until, n) select gen_random_uuid(), gen_random_uuid(), now() + (n % 3 - 1.5) * interval '1 hour', 0 from generate_series(1, 30000) n`,
		`insert into correspondent (user_id, recipient, seen_on) select 1, sha256(n::text::bytea), current_date - n from generate_series(1, 500) n
			where n <> 395`, // which would go if a day began meanwhile
		`insert into usage_window (scope, subject, kind, window_s, at, n)
			select 'user', s, 'messages', 3600, array[floor(extract(epoch from now()) / 60)::bigint - case when s % 2 = 0 then 0 else 500 end], array[1] from generate_series(1, 3000) s`,
	} {
		queuetest.Exec(t, db, sql)
	}
	const walk = `select history_walk::text from history_walk`
	was := queuetest.Read(t, db, walk)
	for range 5 {
		if err := r.others(queuetest.Context(t), conn); err != nil {
			t.Fatal(err)
		}
	}
	for sql, want := range map[string]int{
		`select count(*) from hold where (user_id, credential_id) in ((1, 0), (1, 9))`: 2,
		`select count(*) from hold`:                                    2,
		`select count(*) from node where name = 'old'`:                 2,
		`select count(*) from activity`:                                200 * 14,
		`select count(*) from duplicate`:                               10000,
		`select count(*) from correspondent`:                           394,
		`select count(*) from usage_window`:                            1500,
		`select count(*) from usage_window where subject::int % 2 = 0`: 1500,
		`select count(*) from recipient`:                               2,
	} {
		if got := queuetest.Count(t, db, sql); got != want {
			t.Errorf("%s: %d, want %d", sql, got, want)
		}
	}
	if is := queuetest.Read(t, db, walk); is != was {
		t.Error("the walk over the history has moved")
	}
}

// A node does all that by itself.
func TestRetentionRuns(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	past(t, db, 500, 40, "g = 1")
	r := New(Config{Pool: db.Pool})
	r.every = 5 * time.Millisecond
	r.Start()
	t.Cleanup(r.Close)
	queuetest.Eventually(t, "the history is gone", func() bool { return left(t, db) == "1 messages, 1 attempts" })
}

// A batch takes as long as is good for the others.
func TestRetentionPace(t *testing.T) {
	t.Parallel()
	r := &Retention{rows: forgetLeast}
	for _, c := range []struct {
		took, pause time.Duration
		rows        int
	}{{time.Millisecond, forgetShort, 200}, {20 * time.Millisecond, 60 * time.Millisecond, 400}, {100 * time.Millisecond, 300 * time.Millisecond, 400},
		{time.Second, 3 * time.Second, 200}, {time.Second, 3 * time.Second, 100}, {time.Second, 3 * time.Second, 100}} {
		if r.pace(c.took); r.rest != c.pause || r.rows != c.rows {
			t.Errorf("after %v: %d rows and a rest of %v, want %d and %v", c.took, r.rows, r.rest, c.rows, c.pause)
		}
	}
	r.rows = forgetMost
	if r.pace(time.Millisecond); r.rows != forgetMost {
		t.Errorf("%d rows", r.rows)
	}
}

// After a batch all nodes rest, not only the one that did it.
func TestHistoryRestsForAll(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	past(t, db, 1000, 40, "false")
	one, other := New(Config{Pool: db.Pool}), New(Config{Pool: db.Pool})
	one.rest = time.Hour
	conn := working(t, db)
	for i, want := range []time.Duration{time.Hour, 0} {
		pause, err := []*Retention{one, other}[i].history(queuetest.Context(t), conn)
		if err != nil || pause != want {
			t.Errorf("node %d is to pause for %v, want %v; %v", i, pause, want, err)
		}
	}
	if got := left(t, db); got != "900 messages, 900 attempts" {
		t.Errorf("%s are left", got)
	}
}

// The hold of a revoked credential goes when it holds nothing; that of a user stays.
func TestCredentialHoldEnds(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	m := queuetest.Message()
	m.CredentialID = 9
	queuetest.Put(t, q, m, true, "a@example.net")
	abandon(t, db, q, m.ID)
	for _, h := range [][2]int64{{1, 0}, {1, 8}, {1, 9}, {2, 9}} {
		queuetest.Exec(t, db, `insert into hold (user_id, credential_id, reason, made_by, made_at) values ($1, $2, 'x', 'y', now() - interval '1 hour')`, h[0], h[1])
	}
	queuetest.Exec(t, db, `insert into hold (user_id, credential_id, reason, made_by) values (3, 3, 'just now', 'y')`)
	if err := New(Config{Pool: db.Pool}).others(queuetest.Context(t), working(t, db)); err != nil {
		t.Fatal(err)
	}
	list, err := queue.UserHolds(queuetest.Context(t), db.Pool)
	got := ""
	for _, h := range list {
		got += fmt.Sprintf("%d/%d ", h.UserID, h.CredentialID)
	}
	if err != nil || got != "1/0 1/9 3/3 " {
		t.Errorf("holds %s, %v", got, err)
	}
}

// Retention removes the same from a notice as from its message.
func TestNoticesAreForgotten(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	d := queuetest.Put(t, q, queuetest.Message(), true, "gone@example.net")
	q.Settle(queuetest.Outcome(d, 0, queue.Failed))
	var due []*queue.Notice
	queuetest.Eventually(t, "a notice is due", func() (found bool) {
		list, err := q.ClaimNotices(queuetest.Context(t), 1)
		due = list
		return err == nil && len(list) == 1
	})
	notice := queue.Message{ID: queue.NewID(), AcceptedAt: time.Now()}
	if err := q.EnqueueNotice(queuetest.Context(t), due[0], notice, queuetest.Recipients("alice@example.com")[0], []byte("Subject: x\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	queuetest.Eventually(t, "the notice is claimed", func() bool {
		list, err := q.Claim(queuetest.Context(t), queue.ClaimRequest{Messages: 10, PerDestination: 10})
		if err != nil || len(list) == 0 {
			return false
		}
		q.Settle(queuetest.Outcome(list[0], 0, queue.Failed))
		return true
	})
	queuetest.Becomes(t, db, notice.ID, "")
	r, conn := New(Config{Pool: db.Pool, History: time.Nanosecond}), working(t, db)
	queuetest.Eventually(t, "the history is empty", func() bool { walk(t, db, r, conn); return left(t, db) == "0 messages, 0 attempts" })
	if n := queuetest.Count(t, db, `select count(*) from notice`); n != 0 {
		t.Errorf("%d notices are left", n)
	}
}

// working is a connection with the settings of the one that a Retention has.
func working(t testing.TB, db *pgtest.DB) *pgx.Conn {
	t.Helper()
	d := pg.NewDedicated(db.Pool, pg.TuneWork)
	t.Cleanup(d.Close)
	conn, err := d.Get(queuetest.Context(t))
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// abandon ends q, which looks after holds itself, as if its end had left a message with its
// owner.
func abandon(t *testing.T, db *pgtest.DB, q *queue.Queue, id queue.ID) {
	t.Helper()
	if err := q.Close(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	queuetest.Exec(t, db, `update recipient set owner = 1 where message_id = $1`, id)
}

func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// A reader whose cursor is in front of what was deleted hears so; one behind it does not, and what
// is left of older places can be read from the beginning.
func TestFeedIsGone(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	ctx := queuetest.Context(t)
	r, conn := New(Config{Pool: db.Pool}), working(t, db)
	past(t, db, 3, 40, "g = 1") // the first is held
	past(t, db, 1, 20, "false")
	queuetest.Exec(t, db, `insert into event (at, kind, object) values (now() - interval '40 days', 'limit.near', 'x')`)
	queuetest.Exec(t, db, `update message set feed_at = 10 + get_byte(uuid_send(id), 15)`)
	queuetest.Exec(t, db, `update history set feed_at = 20 + get_byte(uuid_send(message_id), 15)`)
	queuetest.Exec(t, db, `update event set feed_at = 22`)
	queuetest.Exec(t, db, `update message set feed_at = 100 where accepted_at > now() - interval '30 days'`)
	page, err := feed.Read(ctx, db.Pool, feed.Cursor{}, feed.Filter{})
	if err != nil || len(page.Events) < 8 {
		t.Fatalf("%d events, %v", len(page.Events), err)
	}
	places := make([]feed.Cursor, len(page.Events))
	for i, e := range page.Events {
		if places[i], err = feed.ParseCursor(e.Cursor); err != nil {
			t.Fatal(err)
		}
	}
	walk(t, db, r, conn)
	if err := r.others(ctx, conn); err != nil {
		t.Fatal(err)
	}
	if gone := queuetest.Count(t, db, `select gone from feed_state`); gone != 23 {
		t.Errorf("the feed is gone up to %d, want the last deleted attempt's place, 23", gone)
	}
	var missing *feed.GoneError
	if _, err := feed.Read(ctx, db.Pool, places[0], feed.Filter{}); !errors.As(err, &missing) || time.Since(missing.Until) < 39*24*time.Hour {
		t.Errorf("in front of what is gone: %v", err)
	}
	last := places[len(places)-1]
	if _, err := feed.Read(ctx, db.Pool, last, feed.Filter{}); err != nil {
		t.Errorf("behind what is gone: %v", err)
	}
	if page, err := feed.Read(ctx, db.Pool, feed.Cursor{}, feed.Filter{}); err != nil || len(page.Events) != 4 {
		t.Errorf("%d events are left, %v", len(page.Events), err)
	}
	if n := queuetest.Count(t, db, `select count(*) from event`); n != 0 {
		t.Errorf("%d old events", n)
	}
}

// Events that an active webhook has not had are kept for 96 hours.
func TestWebhooksKeepHistory(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		about, state string
		place, days  int // ago
		kept         bool
	}{
		{"behind", "active", 3, 2, true},
		{"has had them", "active", 0, 2, false},
		{"too old", "active", 30, 5, false},
		{"paused", "paused", 3, 2, false},
	} {
		t.Run(c.about, func(t *testing.T) {
			t.Parallel()
			db := pgtest.New(t)
			r, conn := New(Config{Pool: db.Pool, History: time.Hour}), working(t, db)
			past(t, db, 10, c.days, "false")
			queuetest.Exec(t, db, `insert into event (kind, object, at) values ('breaker.open', 'x', now() - $1 * interval '1 day')`, c.days)
			queuetest.Exec(t, db, `insert into webhook (name, state, place_at, url, at_once, cursor, secret)
				values ('a', $1, now() - $2 * interval '1 day', 'https://example.com', 1, '', '')`, c.state, c.place)
			walk(t, db, r, conn)
			if err := r.others(queuetest.Context(t), conn); err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprintf("%s, %d events", left(t, db), queuetest.Count(t, db, `select count(*) from event`))
			if want := map[bool]string{true: "10 messages, 10 attempts, 1 events", false: "0 messages, 0 attempts, 0 events"}[c.kept]; got != want {
				t.Errorf("%s are left, want %s", got, want)
			}
		})
	}
}
