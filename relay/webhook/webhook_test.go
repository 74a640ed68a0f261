package webhook

import (
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/relay/feed"
	"postern/relay/seal"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shared is a server of this package's own, which ends with the process: transactions of the tests of
// other packages would hold the feed back.
var shared = sync.OnceValues(func() (*pgserver.Server, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	dir := filepath.Join(os.TempDir(), "postern-test-webhook-"+strings.ToLower(rand.Text()[:12]))
	return pgserver.Start(ctx, pgserver.Config{Dir: dir, Temporary: true, Unsafe: true})
})

// bench is a database with a store, and what senders need.
type bench struct {
	t     *testing.T
	db    *pgtest.DB
	store *Store
	cfg   Config
	n     int // messages
}

func newBench(t *testing.T) *bench {
	t.Helper()
	server, err := shared()
	must(t, err)
	return benchOn(t, server)
}

func benchOn(t *testing.T, server *pgserver.Server) *bench {
	t.Helper()
	db := pgtest.On(t, server)
	b := &bench{t: t, db: db}
	b.exec(`create function id_of(n int) returns uuid language sql immutable as $$ select ('018f0000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid $$`)
	must(t, feed.Mark(t.Context(), db.Pool))
	sealer, err := seal.New(make([]byte, seal.KeySize))
	must(t, err)
	allow, err := ParseAllow([]string{"127.0.0.0/8"})
	must(t, err)
	b.store = &Store{DB: db.Pool, Sealer: sealer, Actor: "root"}
	b.cfg = Config{DB: db.Pool, Sealer: sealer, Reach: Reach{Allow: allow}, Log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	return b
}

func (b *bench) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.db.Pool.Exec(context.Background(), sql, args...); err != nil {
		b.t.Fatalf("%s: %v", sql, err)
	}
}

func (b *bench) int(sql string, args ...any) (n int) {
	b.t.Helper()
	must(b.t, b.db.Pool.QueryRow(context.Background(), sql, args...).Scan(&n))
	return n
}

// happen makes n events, each of one message of a user, and returns their ids.
func (b *bench) happen(n int, userID int64) {
	b.t.Helper()
	b.exec(`insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
		select id_of(n), $3, 1, 'alice', 'example.com', 1, '', false, '', '', '<' || n || '@example.com>', now(), '', '', '', '', 'a', 1
		from generate_series($1::int, $2::int) n`, b.n+1, b.n+n, userID)
	b.n += n
}

// ids are those of all events of the feed.
func (b *bench) ids(f feed.Filter) (ids []string) {
	b.t.Helper()
	var at feed.Cursor
	for {
		page, err := feed.Read(b.t.Context(), b.db.Pool, at, f)
		must(b.t, err)
		for i := range page.Events {
			ids = append(ids, page.Events[i].ID.String())
		}
		at = page.Next
		if !page.More {
			return ids
		}
	}
}

func (b *bench) add(name, endpoint string, kinds ...feed.Kind) Secret {
	b.t.Helper()
	secret, err := b.store.Add(b.t.Context(), New{Name: name, URL: endpoint, Kinds: kinds, Limits: Limits{Concurrency: Concurrency}})
	must(b.t, err)
	return secret
}

func (b *bench) show(name string) Webhook {
	b.t.Helper()
	list, err := b.store.List(b.t.Context(), name)
	must(b.t, err)
	return list[0]
}

// run runs a sender until stop, or the end of the test.
func (b *bench) run() (s *Sender, stop func()) {
	b.t.Helper()
	s = NewSender(b.cfg)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	stop = func() { cancel(); <-done }
	b.t.Cleanup(stop)
	return s, stop
}

// until waits for something to become true.
func until(t testing.TB, what string, is func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); !is(); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%s: it did not happen", what)
		}
	}
}

// request is one that a receiver got.
type request struct {
	http.Header
	path, body string
}

// receiver is an endpoint. answer says what to answer, nil for 204.
type receiver struct {
	*httptest.Server
	mu     sync.Mutex
	got    []request
	answer func(w http.ResponseWriter, r request)
}

func newReceiver(t *testing.T, answer func(http.ResponseWriter, request)) *receiver {
	t.Helper()
	r := &receiver{answer: answer}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, err := io.ReadAll(q.Body)
		if err != nil {
			return
		}
		one := request{q.Header, q.URL.Path, string(body)}
		r.mu.Lock()
		r.got = append(r.got, one)
		r.mu.Unlock()
		if r.answer != nil {
			r.answer(w, one)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	t.Cleanup(r.Close)
	return r
}

func (r *receiver) requests() []request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.got)
}

// ids are those of the events that it was sent at a path, each once.
func (r *receiver) ids(path string) (ids []string) {
	for _, q := range r.requests() {
		if q.path == path {
			ids = append(ids, q.Get(HeaderID))
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids)
}

func sorted(list []string) []string {
	slices.Sort(list)
	return list
}

// Each event is one signed request with the feed's id and JSON; what is not wanted is not sent.
func TestSend(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	secret := b.add("all", r.URL+"/all")
	b.add("some", r.URL+"/some", feed.Audit)
	b.happen(200, 1)
	b.run()
	until(t, "all is sent", func() bool { return len(r.ids("/all")) == 202 && len(r.ids("/some")) > 0 })
	if got, want := r.ids("/all"), sorted(b.ids(feed.Filter{})); !slices.Equal(got, want) {
		t.Errorf("%d events were sent of %d", len(got), len(want))
	}
	for _, q := range r.requests() {
		switch {
		case q.path == "/all":
			if err := Verify([]Secret{secret}, q.Get, []byte(q.body), time.Now()); err != nil {
				t.Fatal(err)
			}
			fallthrough
		default:
			if !strings.Contains(q.body, fmt.Sprintf(`"id":%q`, q.Get(HeaderID))) || q.Get("Content-Type") != "application/json" {
				t.Fatalf("%v %s", q.Header, q.body)
			}
			if q.path == "/some" && !strings.Contains(q.body, `"kind":"audit"`) {
				t.Fatalf("it did not ask for %s", q.body)
			}
		}
	}
	const kept = `select count(*) from webhook_try t join webhook w on w.id = t.webhook_id where w.name = 'all'`
	until(t, "all is settled", func() bool { return b.show("all").Behind < 60 && b.int(kept) == KeptTries })
	if n := b.int(`select count(*) from webhook_retry`); n != 0 {
		t.Errorf("%d events wait", n)
	}
}

// status is an answer.
func status(code int, header ...string) func(http.ResponseWriter, request) {
	return func(w http.ResponseWriter, _ request) {
		for i := 0; i+1 < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// An event that fails is sent again with the same id and body, and the others meanwhile.
func TestRetry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	var mu sync.Mutex
	seen := map[string]string{}
	r := newReceiver(t, func(w http.ResponseWriter, q request) {
		mu.Lock()
		defer mu.Unlock()
		id := q.Get(HeaderID)
		if body, again := seen[id]; again || len(seen)%5 != 0 {
			if again && body != q.body {
				t.Errorf("another body of %s", id)
			}
			w.WriteHeader(http.StatusOK)
		} else {
			w.WriteHeader(http.StatusInternalServerError)
		}
		seen[id] = q.body
	})
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(100, 1)
	s, _ := b.run()
	until(t, "all was tried", func() bool { return len(r.ids("/")) == 100 })
	until(t, "it is written", func() bool { return s.Count()[Tries{"a", Taken}]+s.Count()[Tries{"a", Failed}] >= 100 })
	if n := b.int(`select count(*) from webhook_retry where tries = 1 and status = 500 and error = 'the answer was 500' and kind = 'accepted'
		and next_at between clock_timestamp() - interval '1 minute' and clock_timestamp() + interval '6 seconds'`); n != 20 {
		t.Errorf("%d events wait", n)
	}
	b.exec(`update webhook_retry set next_at = now()`)
	until(t, "all is taken", func() bool {
		return s.Count()[Tries{"a", Taken}] == 100 && b.int(`select count(*) from webhook_retry`) == 0
	})
}

// An endpoint that fails is left alone, and then tried with one event at a time.
func TestFailing(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, status(http.StatusBadGateway))
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(300, 1)
	s, _ := b.run()
	until(t, "it is left alone", func() bool { return b.show("a").WaitUntil != nil })
	first := len(r.requests())
	if first < failing || first > failing+Concurrency {
		t.Errorf("%d requests", first)
	}
	b.exec(`update webhook set wait_until = null`)
	until(t, "it is tried again", func() bool { return b.show("a").WaitUntil != nil })
	if n := len(r.requests()); n != first+1 {
		t.Errorf("%d requests after %d", n, first)
	}
	r.mu.Lock()
	r.answer = nil
	r.mu.Unlock()
	b.exec(`update webhook set wait_until = null`)
	b.exec(`update webhook_retry set next_at = now()`)
	until(t, "all is taken", func() bool { return s.Count()[Tries{"a", Taken}] == 300 })
	if w := b.show("a"); w.Failures != 0 || w.Waiting != 0 {
		t.Errorf("%+v", w)
	}
}

// 410 disables a webhook; what it has not taken waits until an admin enables it.
func TestGone410(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, status(http.StatusGone))
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(3, 1)
	s, _ := b.run()
	until(t, "it is disabled", func() bool { return b.show("a").State == Disabled })
	if w := b.show("a"); !strings.Contains(w.Reason, "410") || w.Waiting == 0 {
		t.Errorf("%+v", w)
	}
	r.mu.Lock()
	r.answer = nil
	r.mu.Unlock()
	must(t, b.store.Enable(t.Context(), "a"))
	until(t, "all is taken", func() bool { return s.Count()[Tries{"a", Taken}] == 3 })
}

// Retry-After holds for the endpoint, and not for others.
func TestRetryAfter(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, func(w http.ResponseWriter, q request) {
		if q.path == "/busy" {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}
	})
	b.add("busy", r.URL+"/busy", feed.Accepted)
	b.add("idle", r.URL+"/idle", feed.Accepted)
	b.happen(200, 1)
	b.run()
	until(t, "the others are sent", func() bool { return len(r.ids("/idle")) == 200 })
	until(t, "it waits", func() bool { return b.show("busy").WaitUntil != nil })
	w := b.show("busy")
	if wait := time.Until(*w.WaitUntil); wait < 59*time.Minute || wait > time.Hour+time.Minute {
		t.Errorf("it waits for %s", wait)
	}
	if n := len(r.ids("/busy")); n == 0 || n > Concurrency {
		t.Errorf("%d events were sent to it", n)
	}
	if n := b.int(`select count(*) from webhook_retry where next_at < clock_timestamp() + interval '59 minutes'`); n != 0 {
		t.Errorf("%d events are due earlier", n)
	}
}

// An endpoint that hangs keeps no other one waiting.
func TestHanging(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	release := make(chan struct{})
	r := newReceiver(t, func(_ http.ResponseWriter, q request) {
		if q.path == "/hangs" {
			<-release
		}
	})
	b.add("hangs", r.URL+"/hangs", feed.Accepted)
	b.add("well", r.URL+"/well", feed.Accepted)
	_, stop := b.run()
	b.happen(1, 1)
	until(t, "one hangs", func() bool { return len(r.ids("/hangs")) > 0 })
	b.happen(1000, 1)
	until(t, "the other gets all", func() bool { return len(r.ids("/well")) == 1001 })
	if n := b.int(`select count(*) from webhook_try t join webhook w on w.id = t.webhook_id where name = 'hangs' and error = ''`); n != 0 {
		t.Errorf("%d requests were answered", n)
	}
	close(release)
	stop()
}

// What was sent when a process died is sent again, with the same id, by another process.
func TestCrash(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	release, hangs := make(chan struct{}), true
	var mu sync.Mutex
	r := newReceiver(t, func(_ http.ResponseWriter, q request) {
		mu.Lock()
		wait := hangs
		mu.Unlock()
		if wait {
			<-release
		}
	})
	b.add("a", r.URL+"/", feed.Accepted)
	b.happen(1, 1)
	_, stopFirst := b.run()
	until(t, "it is sent", func() bool { return len(r.requests()) == 1 })
	// The first process stops renewing, as one that has died or is cut off.
	b.exec(`update webhook set owner = gen_random_uuid(), lease_until = clock_timestamp() - interval '1 second'`)
	mu.Lock()
	hangs = false
	mu.Unlock()
	second, _ := b.run()
	until(t, "it is sent again", func() bool { return len(r.requests()) >= 2 })
	close(release)
	until(t, "it is settled", func() bool { return b.int(`select count(*) from webhook_try`) > 0 })
	stopFirst()
	if ids := r.ids("/"); len(ids) != 1 {
		t.Errorf("ids %q", ids)
	}
	b.happen(10, 1)
	until(t, "the second goes on", func() bool { return len(r.ids("/")) == 11 && second.Count()[Tries{"a", Taken}] > 0 })
}

// A webhook that is paused is sent nothing, and then all that happened.
func TestPause(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	r := newReceiver(t, nil)
	b.add("a", r.URL+"/a", feed.Accepted)
	b.add("b", r.URL+"/b", feed.Accepted)
	must(t, b.store.Pause(t.Context(), "a"))
	b.happen(5, 1)
	b.run()
	until(t, "the other is sent them", func() bool { return len(r.ids("/b")) == 5 })
	if n := len(r.ids("/a")); n != 0 {
		t.Errorf("%d were sent", n)
	}
	must(t, b.store.Resume(t.Context(), "a"))
	until(t, "it is sent them", func() bool { return len(r.ids("/a")) == 5 })
}

// A webhook for which nothing happens is not behind, however long; one whose events of a page are not all
// sent is.
func TestPlaceTime(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.add("a", "https://example.com/")
	s := NewSender(b.cfg)
	newest, err := feed.Newest(t.Context(), b.db.Pool)
	must(t, err)
	s.newest.Store(&end{newest, time.Now()})
	b.exec(`update webhook set owner = $1, lease_until = now() + interval '1 hour', place_at = now() - interval '3 hours'`, s.owner)
	h := &hook{id: int64(b.int(`select id from webhook`))}
	w := &worker{s: s, at: newest, seen: &end{at: newest}, atTime: time.Now().Add(-3 * time.Hour)}
	if jobs, err := w.fresh(t.Context(), h, 1); len(jobs) > 0 || err != nil {
		t.Fatal(jobs, err)
	}
	if w := b.show("a"); w.Behind > 60 {
		t.Errorf("%v seconds behind", w.Behind)
	}
	early := time.Now().Add(-time.Hour)
	cursor := newest.String()
	w.events, w.next, w.seen = []feed.Event{{At: early, Cursor: cursor}, {At: early, Cursor: cursor}}, newest, s.newest.Load()
	for n, want := range map[int]time.Time{1: early, 2: w.seen.time} {
		if _, at, err := w.behind(n); err != nil || !at.Equal(want) {
			t.Errorf("behind %d of 2: %v, %v", n, at, err)
		}
	}
	w.more = true
	if _, at, err := w.behind(2); err != nil || !at.Equal(early) {
		t.Errorf("with more behind: %v, %v", at, err)
	}
}

// pages counts the pages of the feed that are read.
type pages struct{ n atomic.Int32 }

func (p *pages) TraceQueryStart(ctx context.Context, _ *pgx.Conn, query pgx.TraceQueryStartData) context.Context {
	if strings.Contains(query.SQL, "history_key") {
		p.n.Add(1)
	}
	return ctx
}

func (p *pages) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Webhooks that are near the end of the feed read it once for all, however many they are.
func TestOneReadForAll(t *testing.T) {
	t.Parallel()
	const hooks = 30
	b := newBench(t)
	r := newReceiver(t, nil)
	var read pages
	config := b.db.Pool.Config()
	config.ConnConfig.Tracer = &read
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	must(t, err)
	t.Cleanup(pool.Close)
	b.cfg.DB = pool
	for i := range hooks {
		b.add(fmt.Sprintf("w%d", i), fmt.Sprintf("%s/%d", r.URL, i), feed.Accepted)
	}
	b.exec(`update webhook set cursor = w.cursor from webhook w where w.name = 'w0'`)
	s := NewSender(b.cfg)
	b.exec(`update webhook set owner = $1, lease_until = clock_timestamp() + interval '1 hour'`, s.owner)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	const rounds = 5
	for round := 1; round <= rounds; round++ {
		b.happen(10, 1)
		until(t, "all are sent", func() bool { return b.each(r, hooks, 10*round) })
	}
	if n := int(read.n.Load()); n > 5*rounds { // a transaction of another test may hold back a part
		t.Errorf("%d pages were read for %d webhooks in %d rounds", n, hooks, rounds)
	}
}

// While a transaction is open, what happened since it began counts as not sent.
func TestFeedHeld(t *testing.T) {
	t.Parallel()
	b := benchOn(t, pgtest.Server(t, pgserver.Config{Unsafe: true}))
	b.add("a", "https://example.com/", feed.Delivered)
	tx, err := b.db.Pool.Begin(t.Context())
	must(t, err)
	defer func() { _ = tx.Rollback(context.Background()) }()
	var since time.Time
	must(t, tx.QueryRow(t.Context(), `insert into event (kind, object) values ('limit.near', '') returning now()`).Scan(&since))
	b.happen(1, 1)
	b.exec(`update webhook set place_at = '2020-01-01'`)
	b.run()
	until(t, "its place is written", func() bool { return b.int(`select count(*) from webhook where place_at > '2020-01-02'`) == 1 })
	if n := b.int(`select count(*) from webhook where place_at > $1`, since); n != 0 {
		t.Error("its place is later than the transaction that holds the feed")
	}
	now := time.Now()
	for age, want := range map[time.Duration]bool{59 * time.Second: false, 61 * time.Second: true} {
		if got := heldSince(&feed.Holder{Since: now.Add(-age)}, now); (got != nil) != want {
			t.Errorf("held for %s: %v", age, got)
		}
	}
	if heldSince(nil, now) != nil {
		t.Error("nothing holds it")
	}
}
