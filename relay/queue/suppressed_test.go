package queue_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/suppression"
)

// suppressing is a queue with the list of a node, which looks when it is told to.
type suppressing struct {
	t    *testing.T
	db   *pgtest.DB
	list *suppression.List
	q    *queue.Queue
}

func newSuppressing(t *testing.T) *suppressing {
	b := &suppressing{t: t, db: pgtest.New(t)}
	b.list = suppression.New(suppression.Config{DB: b.db.Pool})
	b.q = queuetest.Start(t, b.config("a", b.list))
	return b
}

func (b *suppressing) config(name string, list *suppression.List) queue.Config {
	cfg := queuetest.HandConfig(b.db)
	cfg.Node, cfg.Suppressed = name, list
	return cfg
}

// put has a user send a message.
func (b *suppressing) put(user int64, to string) *queue.Delivery {
	b.t.Helper()
	m := queuetest.Message()
	m.UserID = user
	return queuetest.Put(b.t, b.q, m, true, to)
}

// settle ends the attempt of d by MX, and waits until that is written.
func (b *suppressing) settle(d *queue.Delivery, result queue.Result) queue.Outcome {
	b.t.Helper()
	o := queuetest.Outcome(d, 0, result)
	o.Upstream, o.NoMailbox = "mx", result == queue.Failed
	b.write(o)
	return o
}

func (b *suppressing) write(o queue.Outcome) {
	b.t.Helper()
	before := b.count(`select count(*) from history`)
	b.q.Settle(o)
	queuetest.Eventually(b.t, "the history of an outcome", func() bool { return b.count(`select count(*) from history`) > before })
}

func (b *suppressing) count(sql string, args ...any) (n int) {
	b.t.Helper()
	if err := b.db.Pool.QueryRow(b.t.Context(), sql, args...).Scan(&n); err != nil {
		b.t.Fatal(err)
	}
	return n
}

// entry is the one of user 1, as the table has it; nil for none.
func (b *suppressing) find(user int64, to string) *suppression.Entry {
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
	b := newSuppressing(t)
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
	b := newSuppressing(t)
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
	b := newSuppressing(t)
	store := suppression.NewStore(b.db.Pool, "alice")
	owner := suppression.Owner{UserID: 1, Name: "shop"}
	put := func(address, reason string, expires *time.Time) {
		t.Helper()
		if _, err := store.Add(t.Context(), owner, []string{address}, reason, expires); err != nil {
			t.Fatal(err)
		}
	}
	put("bob@EXAMPLE.net", "asked", nil)
	b.settle(b.put(1, "bob@example.net"), queue.Failed)
	b.settle(b.put(1, "bob@example.net"), queue.Delivered)
	if e := b.find(1, "bob@example.net"); e == nil || e.Source != suppression.Admin || e.ExpiresAt != nil || e.Reason != "asked" {
		t.Errorf("entry %+v", e)
	}
	soon := time.Now().Add(time.Hour)
	put("bob@example.net", "", &soon)
	queuetest.Exec(t, b.db, `update suppression set expires_at = clock_timestamp() - interval '1 hour'`)
	b.settle(b.put(1, "bob@example.net"), queue.Failed)
	if e := b.find(1, "bob@example.net"); e == nil || e.Source != suppression.Bounce || !near(days(e), 7) {
		t.Errorf("a bounce after its end: %+v", e)
	}
	if n := b.count(`select count(*) from audit where actor = 'alice' and action = 'suppression add' and object = 'user shop'`); n != 2 {
		t.Errorf("%d deeds in the audit", n)
	}
}

// TestImportedBounce ends and lives longer as one of our own.
func TestImportedBounce(t *testing.T) {
	t.Parallel()
	b := newSuppressing(t)
	until, owner := time.Now().Add(time.Hour).Format(time.RFC3339), suppression.Owner{UserID: 1, Name: "shop"}
	list, err := suppression.ParseCSV(strings.NewReader("address,source,expires\nagain@example.net,bounce,"+until+"\nwell@example.net,bounce,"+until+"\n"), owner)
	if err == nil {
		err = suppression.NewStore(b.db.Pool, "alice").Import(t.Context(), owner, list, func(int) {})
	}
	if err != nil {
		t.Fatal(err)
	}
	b.settle(b.put(1, "again@example.net"), queue.Failed)
	b.settle(b.put(1, "well@example.net"), queue.Delivered)
	if e := b.find(1, "again@example.net"); e == nil || !near(days(e), 14) {
		t.Errorf("after another bounce: %+v", e)
	}
	if e := b.find(1, "well@example.net"); e != nil {
		t.Errorf("after a delivery: %+v", e)
	}
}

// TestLockedEntry has somebody keep an entry locked: outcomes are written, and the entry stays.
func TestLockedEntry(t *testing.T) {
	t.Parallel()
	b := newSuppressing(t)
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
