package feed

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func exec(t testing.TB, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}, sql string, args ...any) {
	t.Helper()
	rows, err := db.Query(context.Background(), sql, args...)
	if err == nil {
		rows.Close()
		err = rows.Err()
	}
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// insertMessage puts the nth message into the table.
const insertMessage = `insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
	client_addr, client_hello, listener, tls, node, recipients)
	select id_of(n), 1, 1, 'alice', 'example.com', 1, '', false, '', '', '<' || n || '@example.com>', now(), '', '', '', '', 'a', 1 from generate_series($1::int, $2::int) n`

const insertHistory = `insert into history (message_id, n, at, epoch, result, local, domain)
	select id_of(n), 0, clock_timestamp(), 1, $3, 'bob', 'example.net' from generate_series($1::int, $2::int) n`

const idOfNumber = `create function id_of(n int) returns uuid language sql immutable as $$ select ('018f0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$`

// shared is a server of this package's own, which ends with the process: transactions of the tests of
// other packages would hold the feed back.
var shared = sync.OnceValues(func() (*pgserver.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir := filepath.Join(os.TempDir(), "postern-test-feed-"+strings.ToLower(rand.Text()[:12]))
	return pgserver.Start(ctx, pgserver.Config{Dir: dir, Temporary: true, Unsafe: true})
})

// newFeed is a database with a mark.
func newFeed(t testing.TB) *pgtest.DB {
	t.Helper()
	server, err := shared()
	must(t, err)
	return marked(t, pgtest.On(t, server))
}

// alone is newFeed on a server of its own: no other test has a transaction open there.
func alone(t testing.TB) *pgtest.DB {
	t.Helper()
	return marked(t, pgtest.On(t, pgtest.Server(t, pgserver.Config{Unsafe: true})))
}

func marked(t testing.TB, db *pgtest.DB) *pgtest.DB {
	t.Helper()
	exec(t, db.Pool, idOfNumber)
	must(t, Mark(t.Context(), db.Pool))
	return db
}

// all waits for transactions that are open, as autovacuum's, and reads to the end.
func all(t testing.TB, db *pgtest.DB, after Cursor, f Filter) ([]Event, Cursor) {
	t.Helper()
	var mine int64
	must(t, db.Pool.QueryRow(t.Context(), `select feed_now()`).Scan(&mine))
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(3 * time.Minute); ; <-tick.C {
		var readable bool
		must(t, db.Pool.QueryRow(t.Context(), `select feed_horizon() > $1`, mine).Scan(&readable))
		if readable {
			break
		}
		if time.Now().After(end) {
			t.Fatal("a transaction stays open")
		}
	}
	return some(t, db, after, f)
}

// some reads behind a cursor, in pages, what can be read now.
func some(t testing.TB, db *pgtest.DB, after Cursor, f Filter) (events []Event, next Cursor) {
	t.Helper()
	for {
		page, err := Read(t.Context(), db.Pool, after, f)
		must(t, err)
		events, after = append(events, page.Events...), page.Next
		if !page.More {
			return events, after
		}
	}
}

// told is what events say, "accepted 1, failed 1".
func told(events []Event) string {
	var words []string
	for _, e := range events {
		words = append(words, strings.TrimSpace(fmt.Sprintf("%s %s", e.Kind, numberOf(e))))
	}
	return strings.Join(words, ", ")
}

// numberOf is that of an event's message.
func numberOf(e Event) string {
	if e.Message == nil {
		return e.Object
	}
	id := e.Message.ID
	return fmt.Sprint(int(id[13])<<16 | int(id[14])<<8 | int(id[15]))
}

// A transaction that stays open while later ones commit keeps their events back, and is not missed;
// whichever order they end in.
func TestReadMissesNoLateCommit(t *testing.T) {
	t.Parallel()
	db := alone(t)
	ctx := t.Context()
	at, err := Newest(ctx, db.Pool)
	must(t, err)
	early, err := db.Pool.Begin(ctx)
	must(t, err)
	undone, err := db.Pool.Begin(ctx)
	must(t, err)
	defer func() { _, _ = early.Rollback(context.Background()), undone.Rollback(context.Background()) }()
	exec(t, early, insertMessage, 1, 1)
	exec(t, undone, insertMessage, 2, 2)
	exec(t, db.Pool, insertMessage, 3, 3)
	got, at := some(t, db, at, Filter{})
	if len(got) != 0 {
		t.Errorf("read %s, which is later than what is open", told(got))
	}
	held, err := Hold(ctx, db.Pool)
	if err != nil || held == nil || !regexp.MustCompile(`^process \d+ \(.*\)$`).MatchString(held.Who) || time.Since(held.Since) > time.Hour {
		t.Errorf("held by %+v, %v", held, err)
	}
	exec(t, early, insertHistory, 1, 1, "delivered")
	must(t, undone.Rollback(ctx))
	must(t, early.Commit(ctx))
	got, at = some(t, db, at, Filter{})
	if told(got) != "accepted 1, delivered 1, accepted 3" {
		t.Errorf("read %s", told(got))
	}
	if held, err := Hold(ctx, db.Pool); err != nil || held != nil {
		t.Errorf("held by %+v, %v", held, err)
	}
	if got, _ = some(t, db, at, Filter{}); len(got) != 0 {
		t.Errorf("read %s again", told(got))
	}
}

// A transaction of more rows than a page is read in pages, in their order, each once; a reader may
// stop behind any event.
func TestReadPagesOneTransaction(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	const rows = 2*pageRows + 7
	tx, err := db.Pool.Begin(t.Context())
	must(t, err)
	exec(t, tx, insertMessage, 1, rows)
	exec(t, tx, insertHistory, 1, rows, "hold")
	exec(t, tx, `insert into audit (actor, action, object) select 'root', 'x', n from generate_series(1, $1::int) n`, rows)
	must(t, tx.Commit(t.Context()))
	events, _ := all(t, db, Cursor{}, Filter{})
	if len(events) != 3*rows {
		t.Fatalf("%d events", len(events))
	}
	ids := map[string]bool{}
	for i, e := range events {
		ids[e.ID.String()] = true
		if want := fmt.Sprint(i%rows + 1); numberOf(e) != want {
			t.Fatalf("event %d is about %s, want %s", i, numberOf(e), want)
		}
	}
	if len(ids) != len(events) {
		t.Errorf("%d ids", len(ids))
	}
	for _, i := range []int{0, pageRows - 1, rows - 1, rows, 2*rows - 1, 2*rows + 5} {
		c, err := ParseCursor(events[i].Cursor)
		must(t, err)
		page, err := Read(t.Context(), db.Pool, c, Filter{})
		must(t, err)
		if len(page.Events) == 0 || page.Events[0].ID != events[i+1].ID || !page.More {
			t.Errorf("behind event %d comes another one than %d", i, i+1)
		}
	}
}

// Each result that the history may have is in the table of kinds, and in docs/events.md.
func TestKindsOfResults(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	var check string
	must(t, db.Pool.QueryRow(t.Context(), `select pg_get_constraintdef(oid) from pg_constraint where conname = 'history_result_check'`).Scan(&check))
	var results []string
	for _, m := range regexp.MustCompile(`'([a-z]+)'`).FindAllStringSubmatch(check, -1) {
		results = append(results, m[1])
	}
	slices.Sort(results)
	if known := slices.Sorted(maps.Keys(ofResult)); !slices.Equal(results, known) {
		t.Errorf("the schema has %q, this package %q", results, known)
	}
	page, err := os.ReadFile("../../docs/events.md")
	must(t, err)
	for _, result := range results {
		row := regexp.MustCompile("(?m)^\\| `history`, result .*`" + result + "`.*\\|$").Find(page)
		kind := kindOf(result, false, false)
		if row == nil || kind != "" && !strings.Contains(string(row), "`"+string(kind)+"`") && !strings.Contains(string(row), "the same") {
			t.Errorf("docs/events.md does not say that %s is %q: %q", result, kind, row)
		}
		if kindOf(result, true, true) != "" {
			t.Errorf("a fenced %s is an event", result)
		}
	}
	for _, k := range Kinds() {
		if !strings.Contains(string(page), "`"+string(k)+"`") {
			t.Errorf("docs/events.md does not have the kind %s", k)
		}
	}
	if kindOf("deferred", false, true) != InDoubt || kindOf("unknown", false, true) != InDoubt || kindOf("unknown", false, false) != "" {
		t.Error("doubt is not told")
	}
}

func TestFilter(t *testing.T) {
	t.Parallel()
	db := newFeed(t)
	exec(t, db.Pool, insertMessage, 1, 2)
	exec(t, db.Pool, `update message set user_id = 2 where id = id_of(2)`)
	exec(t, db.Pool, insertHistory, 1, 2, "failed")
	exec(t, db.Pool, `insert into event (kind, object, user_id) values ('limit.near', 'x', 1), ('suppression.added', 'y', 2)`)
	exec(t, db.Pool, insertMessage, 3, 3)
	exec(t, db.Pool, `update message set voided_at = now() where id = id_of(3)`)
	for _, tt := range []struct {
		f    Filter
		want string
	}{
		{Filter{}, "accepted 1, accepted 2, failed 1, failed 2, limit.near x, suppression.added y"},
		{Filter{UserID: 2}, "accepted 2, failed 2, suppression.added y"},
		{Filter{UserID: 1}, "accepted 1, failed 1"},
		{Filter{UserID: 1, Kinds: []Kind{Failed, Expired}}, "failed 1"},
		{Filter{Kinds: []Kind{LimitNear}}, "limit.near x"},
		{Filter{Since: time.Now().Add(time.Hour)}, ""},
	} {
		if got, _ := all(t, db, Cursor{}, tt.f); told(got) != tt.want {
			t.Errorf("%+v: %s", tt.f, told(got))
		}
	}
}

func TestCursorText(t *testing.T) {
	t.Parallel()
	c := Cursor{incarnation: 1 << 50, feedAt: 12345, source: 2, number: 7, key: "018f0000-0000-7000-8000-000000000001.000000000.1234567.9"}
	got, err := ParseCursor(c.String())
	if err != nil || got != c {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{"", "x", "2" + c.String()[1:], c.String() + " ", "1-1-1-1", "1--1-1-1-1-x", "1-01-1-1-1-x", "1-1-1-1-1-X'", "1-1-1-1-1-" + strings.Repeat("a", 200)} {
		if _, err := ParseCursor(bad); !errors.Is(err, ErrCursor) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
