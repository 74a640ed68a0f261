package suppression_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/internal/leaktest"
	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/internal/refusal"
	"postern/relay/queue"
	"postern/relay/smtp"
	"postern/relay/suppression"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

// bench is a queue with the list of a node, which looks when it is told to.
type bench struct {
	t    *testing.T
	db   *pgtest.DB
	list *suppression.List
	q    *queue.Queue
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, db: pgtest.New(t)}
	b.list = suppression.New(suppression.Config{DB: b.db.Pool})
	b.q = queuetest.Start(t, b.config("a", b.list))
	return b
}

func (b *bench) config(name string, list *suppression.List) queue.Config {
	cfg := queuetest.HandConfig(b.db)
	cfg.Node, cfg.Suppressed = name, list
	return cfg
}

// put has a user send a message.
func (b *bench) put(user int64, to string) *queue.Delivery {
	b.t.Helper()
	m := queuetest.Message()
	m.UserID = user
	return queuetest.Put(b.t, b.q, m, true, to)
}

// settle ends the attempt of d by MX, and waits until that is written.
func (b *bench) settle(d *queue.Delivery, result queue.Result) queue.Outcome {
	b.t.Helper()
	o := queuetest.Outcome(d, 0, result)
	o.Upstream, o.NoMailbox = "mx", result == queue.Failed
	b.write(o)
	return o
}

func (b *bench) write(o queue.Outcome) {
	b.t.Helper()
	before := b.count(`select count(*) from history`)
	b.q.Settle(o)
	queuetest.Eventually(b.t, "the history of an outcome", func() bool { return b.count(`select count(*) from history`) > before })
}

func (b *bench) count(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.db.Pool.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// entry is the one of user 1, as the table has it; nil for none.
func (b *bench) find(user int64, to string) *suppression.Entry {
	b.t.Helper()
	e, err := suppression.Find(b.t.Context(), b.db.Pool, user, queuetest.Address(to))
	if err != nil {
		b.t.Fatal(err)
	}
	return e
}

// days is how long an entry lives from now on.
func days(e *suppression.Entry) float64 { return time.Until(*e.ExpiresAt).Hours() / 24 }

func near(got, want float64) bool { return got > want-0.01 && got < want+0.01 }

// TestBounces has an entry live twice as long with each bounce that comes while it lives, and end by
// a delivery.
func TestBounces(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	const to = "Bob@EXAMPLE.net"
	queued := b.put(1, to)
	b.settle(b.put(1, to), queue.Failed)
	e := b.find(1, to)
	if e == nil || !near(days(e), 7) || e.Address != "Bob@example.net" || e.Source != suppression.Bounce || e.Reply != "550 5.1.1 no such user" {
		t.Fatalf("entry %+v", e)
	}
	since := e.AddedAt
	if b.find(2, to) != nil || b.find(1, "bob@example.net") != nil {
		t.Error("another user, or another mailbox, has the entry")
	}
	// It was on its way when the first bounced: that is no second bounce.
	b.settle(queued, queue.Failed)
	if e := b.find(1, to); !near(days(e), 7) {
		t.Errorf("%v days after the bounce of a message that was queued", days(e))
	}
	for _, want := range []float64{14, 28, 56, 90, 90} {
		b.settle(b.put(1, to), queue.Failed)
		if e := b.find(1, to); !near(days(e), want) || !e.AddedAt.Equal(since) {
			t.Errorf("%v days since %v, want %v since %v", days(e), e.AddedAt, want, since)
		}
	}
	// A day after its end it is there, and says nothing; the next bounce begins anew.
	queuetest.Exec(t, b.db, `update suppression set expires_at = clock_timestamp() - interval '1 hour'`)
	if e := b.find(1, to); e != nil {
		t.Errorf("it holds beyond its end: %+v", e)
	}
	b.settle(b.put(1, to), queue.Failed)
	if e := b.find(1, to); e == nil || !near(days(e), 7) || e.AddedAt.Equal(since) {
		t.Errorf("after its end: %+v", e)
	}
	b.settle(b.put(2, to), queue.Delivered)
	if b.find(1, to) == nil {
		t.Error("another user's delivery removed it")
	}
	late, success := b.put(1, to), b.put(1, to)
	o := queuetest.Outcome(late, 0, queue.Delivered)
	o.Upstream, o.At = "mx", time.Now().Add(-time.Hour)
	b.write(o)
	if b.find(1, to) == nil {
		t.Error("a delivery from before the bounce removed it")
	}
	b.settle(success, queue.Delivered)
	if e := b.find(1, to); e != nil {
		t.Errorf("a delivery left %+v", e)
	}
}

// TestNoEntry: what says nothing about a mailbox, or is nobody's.
func TestNoEntry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	by := func(user int64, change func(*queue.Outcome)) {
		d := b.put(user, "x@example.net")
		o := queuetest.Outcome(d, 0, queue.Failed)
		o.Upstream, o.NoMailbox = "mx", true
		change(&o)
		b.write(o)
	}
	by(1, func(o *queue.Outcome) { o.NoMailbox = false })
	by(1, func(o *queue.Outcome) { o.Upstream = "smarthost" })
	by(0, func(*queue.Outcome) {}) // a notice
	by(1, func(o *queue.Outcome) { o.Epoch-- })
	if n := b.count(`select count(*) from history where fenced`); n != 1 {
		t.Errorf("%d outcomes are fenced, want 1", n)
	}
	if n := b.count(`select count(*) from suppression`); n != 0 {
		t.Errorf("%d entries", n)
	}
	// Nor does what did not happen remove one.
	b.settle(b.put(1, "y@example.net"), queue.Failed)
	for _, change := range []func(*queue.Outcome){func(o *queue.Outcome) { o.Upstream = "smarthost" }, func(o *queue.Outcome) { o.Epoch-- }} {
		d := b.put(1, "y@example.net")
		o := queuetest.Outcome(d, 0, queue.Delivered)
		o.Upstream = "mx"
		change(&o)
		b.write(o)
	}
	if b.find(1, "y@example.net") == nil {
		t.Error("the entry is gone")
	}
}

// TestAdminsEntryStays: neither bounces nor deliveries change it, until its end.
func TestAdminsEntryStays(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	store := suppression.NewStore(b.db.Pool, "alice")
	owner := suppression.Owner{UserID: 1, Name: "shop"}
	put := func(e suppression.Entry) {
		t.Helper()
		list, err := suppression.Check(owner, []suppression.Entry{e})
		if err == nil {
			err = store.Put(t.Context(), owner, "suppression add", list, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	put(suppression.Entry{Address: "bob@EXAMPLE.net", Reason: "asked"})
	b.settle(b.put(1, "bob@example.net"), queue.Failed)
	b.settle(b.put(1, "bob@example.net"), queue.Delivered)
	if e := b.find(1, "bob@example.net"); e == nil || e.Source != suppression.Admin || e.ExpiresAt != nil || e.Reason != "asked" {
		t.Errorf("entry %+v", e)
	}
	soon := time.Now().Add(time.Hour)
	put(suppression.Entry{Address: "bob@example.net", ExpiresAt: &soon})
	queuetest.Exec(t, b.db, `update suppression set expires_at = clock_timestamp() - interval '1 hour'`)
	b.settle(b.put(1, "bob@example.net"), queue.Failed)
	if e := b.find(1, "bob@example.net"); e == nil || e.Source != suppression.Bounce || !near(days(e), 7) {
		t.Errorf("a bounce after its end: %+v", e)
	}
	if n := b.count(`select count(*) from audit where actor = 'alice' and action = 'suppression add' and object = 'user shop'`); n != 2 {
		t.Errorf("%d deeds in the audit", n)
	}
}

// TestLockedEntry has somebody keep an entry locked: outcomes are written, and the entry stays.
func TestLockedEntry(t *testing.T) {
	t.Parallel()
	b := newBench(t)
	b.settle(b.put(1, "bob@example.net"), queue.Failed)
	ctx := queuetest.Context(t)
	tx, err := b.db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer tx.Rollback(context.WithoutCancel(ctx))
	if _, err := tx.Exec(ctx, `select from suppression for update`); err != nil {
		t.Fatal(err)
	}
	b.settle(b.put(1, "bob@example.net"), queue.Failed)
	b.settle(b.put(1, "bob@example.net"), queue.Delivered)
	if e := b.find(1, "bob@example.net"); e == nil || !near(days(e), 7) {
		t.Errorf("entry %+v", e)
	}
}

// TestListFollows: a node knows of an entry of another within two seconds, also of one whose transaction
// took long and ended out of order; and what it cannot know it asks.
func TestListFollows(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	list := suppression.New(suppression.Config{DB: db.Pool})
	find := func(to string) *suppression.Entry {
		t.Helper()
		e, err := list.Find(t.Context(), 1, queuetest.Address(to))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	add := `insert into suppression (user_id, address, source, expires_at) values ($1, $2, $3, $4)`
	queuetest.Exec(t, db, `insert into app_user (name) values ('shop')`)
	queuetest.Exec(t, db, add, 1, "first@example.net", "admin", nil)
	queuetest.Exec(t, db, add, 2, "of-a-user@who-was.removed", "admin", nil)
	queuetest.Exec(t, db, add, 1, "long@ended.test", "bounce", time.Now().Add(-25*time.Hour))
	if find("first@example.net") == nil || list.Entries() != -1 {
		t.Error("before the first look nothing is asked")
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); list.Run(ctx) }()
	defer func() { stop(); <-done }()
	queuetest.Eventually(t, "the first look", func() bool { return list.Entries() == 1 })

	long, err := db.Pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := long.Exec(ctx, add, 1, "long@example.net", "admin", nil); err != nil {
		t.Fatal(err)
	}
	queuetest.Exec(t, db, add, 0, "*@*.blocked.test", "admin", nil)
	queuetest.Exec(t, db, add, 0, "*@blocked.test", "admin", nil)
	queuetest.Eventually(t, "the patterns", func() bool { return list.Entries() == 3 })
	for to, want := range map[string]string{"x@blocked.test": "*@blocked.test", "x@a.b.blocked.test": "*@*.blocked.test", "x@notblocked.test": "", "x@test": ""} {
		got := ""
		if e := find(to); e != nil {
			got = e.Address
		}
		if got != want {
			t.Errorf("%s: %q, want %q", to, got, want)
		}
	}
	if list.Maybe(queuetest.Address("long@example.net")) {
		t.Error("it knows what is not committed")
	}
	if err := long.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	queuetest.Eventually(t, "the entry of the long transaction", func() bool { return find("long@example.net") != nil })
	if list.Maybe(queuetest.Address("other@example.net")) {
		t.Error("it asks about an address that nobody has suppressed")
	}

	e := find("first@example.net")
	for range 3 {
		list.Refused(e)
	}
	queuetest.Eventually(t, "the hits", func() bool {
		var hits int
		err := db.Pool.QueryRow(t.Context(), `select hits from suppression where address = 'first@example.net' and last_hit_at is not null`).Scan(&hits)
		return err == nil && hits == 3
	})
}

// TestBeyondReach: without an answer of the database there is an error, and no verdict.
func TestBeyondReach(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	list := suppression.New(suppression.Config{DB: db.Pool})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if e, err := list.Find(ctx, 1, queuetest.Address("x@example.net")); err == nil || e != nil {
		t.Errorf("%+v, %v", e, err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"Bob@Example.NET": "Bob@example.net", "bob@bücher.example": "bob@xn--bcher-kva.example", `"a b"@x.test`: `"a b"@x.test`,
		"*@Example.net": "*@example.net", "*@*.Example.net": "*@*.example.net", `"*"@x.test`: `"*"@x.test`,
	} {
		if got, err := suppression.ParseKey(text, true); got != want || err != nil {
			t.Errorf("%s: %q, %v, want %q", text, got, err, want)
		}
	}
	if got := suppression.Key(smtp.Address{Local: "*", Domain: "x.test"}); got != `"*"@x.test` {
		t.Errorf("the mailbox *: %q", got)
	}
	for _, text := range []string{"", "bob", "*@", "*@*.", "*@*.*.x.test", "a@b@c", "bob@*.x.test", "*@-x.test"} {
		if got, err := suppression.ParseKey(text, true); !errors.Is(err, refusal.ErrInvalid) {
			t.Errorf("%q: %q, %v", text, got, err)
		}
	}
	if _, err := suppression.ParseKey("*@x.test", false); !errors.Is(err, refusal.ErrInvalid) {
		t.Errorf("a user's pattern: %v", err)
	}
}

func TestRefusal(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	until := at.AddDate(0, 0, 7)
	tests := map[string]suppression.Entry{
		"550 5.1.1 bob@example.net is suppressed since 2026-11-30 until 2026-12-07, mail to it bounced: 550 5.1.1 No such ?user?; an administrator lifts it with 'postern suppression remove'": {UserID: 1, Address: "bob@example.net", Source: suppression.Bounce, Reply: "550 5.1.1\tNo such «user»", AddedAt: at, ExpiresAt: &until},
		"550 5.1.1 bob@example.net is suppressed since 2026-11-30, by an administrator: asked; an administrator lifts it with 'postern suppression remove'":                                     {UserID: 1, Address: "bob@example.net", Source: suppression.Admin, Reason: "asked", AddedAt: at},
		"550 5.1.1 This address is suppressed by the administrator":     {Address: "bob@example.net", Source: suppression.Admin, Reason: "secret", AddedAt: at},
		"550 5.7.1 Mail to this domain is blocked by the administrator": {Address: "*@example.net", Source: suppression.Admin, Reason: "secret", AddedAt: at},
	}
	for want, e := range tests {
		if got := e.Refusal().String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	long := suppression.Entry{UserID: 1, Address: strings.Repeat("a", 64) + "@" + strings.Repeat("b", 200) + ".test", Source: suppression.Bounce,
		Reply: strings.Repeat("x ", 1000), AddedAt: at, ExpiresAt: &until}
	if wire := long.Refusal().Append(nil); len(wire) > 512 {
		t.Errorf("the reply has %d octets", len(wire))
	}
}

// TestFile writes entries as a file and reads it back, also one of somebody else.
func TestFile(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	store := suppression.NewStore(db.Pool, "alice")
	from, to := suppression.Owner{UserID: 1, Name: "shop"}, suppression.Owner{UserID: 2, Name: "copy"}
	const n = 2*suppression.Chunk + 7
	var in strings.Builder
	in.WriteString("address,reason,expires,source,reply\n")
	for i := range n {
		fmt.Fprintf(&in, "to%d@Example.net,\"so, why\",2099-01-01T00:00:00Z,%s,550 5.1.1 none\n", i, []string{"admin", "bounce"}[i%2])
	}
	list, err := suppression.ParseCSV(strings.NewReader(in.String()), from)
	if err != nil || len(list) != n {
		t.Fatal(len(list), err)
	}
	var heard []int
	if list, err = suppression.Check(from, append(list, list[3])); err != nil || len(list) != n {
		t.Fatal(len(list), err)
	}
	if err := store.Put(t.Context(), from, "suppression import", list, func(n int) { heard = append(heard, n) }); err != nil {
		t.Fatal(err)
	}
	if fmt.Sprint(heard) != fmt.Sprint([]int{suppression.Chunk, 2 * suppression.Chunk, n}) {
		t.Errorf("progress %v", heard)
	}
	export := func(o suppression.Owner) string {
		var out bytes.Buffer
		w, err := suppression.NewWriter(&out)
		if err == nil {
			err = store.Each(t.Context(), o, w.Write)
		}
		if err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	file := export(from)
	if lines := strings.Count(file, "\n"); lines != n+1 {
		t.Errorf("%d lines, want %d", lines, n+1)
	}
	if list, err = suppression.ParseCSV(strings.NewReader(file), to); err != nil {
		t.Fatal(err)
	}
	if err := store.Put(t.Context(), to, "suppression import", list, nil); err != nil {
		t.Fatal(err)
	}
	if copied := export(to); copied != file {
		t.Errorf("the copy differs: %.300s\nand %.300s", copied, file)
	}
	var deeds int
	if err := db.Pool.QueryRow(t.Context(), `select count(*) from audit where action = 'suppression import'`).Scan(&deeds); err != nil || deeds != 2 {
		t.Errorf("%d deeds, %v", deeds, err)
	}
}

func TestBadFiles(t *testing.T) {
	t.Parallel()
	for file, want := range map[string]string{
		"":                                 "empty",
		"name\nx@y.test\n":                 "line 1: column",
		"address,address\n":                "line 1: column",
		"reason\nx\n":                      "no column address",
		"address\nx@y.test\nnobody\n":      "line 3",
		"address,expires\nx@y.test,soon\n": "line 2",
		"address,expires\nx@y.test,2020-01-01T00:00:00Z\n": "line 2: it would have expired",
		"address,source\nx@y.test,me\n":                    "line 2: source",
		"address,source\nx@y.test,bounce\n":                "line 2: an entry of a bounce",
		"address\nx@y.test,z\n":                            "line 2",
		"address\n*@y.test\n":                              "line 2",
	} {
		_, err := suppression.ParseCSV(strings.NewReader(file), suppression.Owner{UserID: 1})
		if !errors.Is(err, refusal.ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", file, err, want)
		}
	}
}

// TestRemove removes all or nothing.
func TestRemove(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	store, owner := suppression.NewStore(db.Pool, "alice"), suppression.Owner{}
	list, err := suppression.Check(owner, []suppression.Entry{{Address: "a@x.test"}, {Address: "*@y.test"}})
	if err == nil {
		err = store.Put(t.Context(), owner, "suppression add", list, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	count := func() int {
		n, err := store.Count(t.Context(), owner)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if err := store.Remove(t.Context(), owner, []string{"a@x.test", "b@x.test"}); !errors.Is(err, refusal.ErrNotFound) || count() != 2 {
		t.Error(err, count())
	}
	if err := store.Remove(t.Context(), owner, []string{"a@X.test", "*@y.test"}); err != nil || count() != 0 {
		t.Error(err, count())
	}
}
