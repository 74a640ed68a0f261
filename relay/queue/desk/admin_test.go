package desk

import (
	"errors"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/smtp"
)

func TestAdmin(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool)
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net", "b@example.org")
	o := queuetest.Outcome(d, 0, queue.Deferred)
	o.RetryIn = time.Hour
	q.Settle(o)
	queuetest.Becomes(t, db, m.ID, "0 waiting;1 waiting owned")
	for _, c := range []struct {
		f    Filter
		want int
	}{{Filter{}, 2}, {Filter{Limit: 1}, 1}, {Filter{State: StateWaiting}, 1}, {Filter{State: StateSending}, 1}, {Filter{State: StateHeld}, 0},
		{Filter{Domain: "example.org"}, 1}, {Filter{State: StateFailed}, 0}} {
		if got, err := a.List(queuetest.Context(t), c.f); err != nil || len(got) != c.want {
			t.Errorf("%+v: %d entries, %v", c.f, len(got), err)
		}
	}
	h, err := a.Trace(queuetest.Context(t), m.ID)
	if err != nil || h.Done() || len(h.Live) != 2 || len(h.Events) != 1 {
		t.Fatalf("trace %+v, %v", h, err)
	}
	e := h.Live[0]
	if e.LastReply != "450 4.2.1 later" || e.Recipient != "a@example.net" || e.Sender != "alice@example.com" || e.State != StateWaiting || e.Attempts != 1 {
		t.Fatalf("entry %+v", e)
	}
	if h.Live[1].Node != "a" || h.Message.Node != "a" || h.Message.Recipients != 2 {
		t.Fatalf("trace %+v", h)
	}
	if got := h.Events[0]; got.Reply != "450 4.2.1 later" || got.RemoteMTA != "mx.example.net" || got.Node != "a" {
		t.Fatalf("attempt %+v", got)
	}
	if _, err := a.Trace(queuetest.Context(t), queue.NewID()); !errors.Is(err, ErrNotFound) {
		t.Fatalf("trace of nothing: %v", err)
	}
	if ids, err := a.Find(queuetest.Context(t), "<m@example.com>", 5); err != nil || len(ids) != 1 || ids[0] != m.ID {
		t.Fatalf("find: %v, %v", ids, err)
	}
	if n, err := a.Retry(queuetest.Context(t), Filter{}, false); err != nil || n != 1 {
		t.Fatalf("retry all: %d, %v", n, err)
	}
	if got := history(t, db, m.ID); got != "0 deferred;0 retry" {
		t.Fatalf("history %q", got)
	}
	claimOne(t, q)
}

// A reason that kept mail from being tried at all is not an attempt and not in the history, but
// whoever lists the queue reads it.
func TestReasonOfNoAttempt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net")
	o := queuetest.Outcome(d, 0, queue.Deferred)
	o.NotAnAttempt, o.RetryIn, o.Reply = true, time.Hour, smtp.Temporary(451, 4, 4, "no route")
	q.Settle(o)
	queuetest.Becomes(t, db, m.ID, "0 waiting")
	h, err := NewAdmin(db.Pool).Trace(queuetest.Context(t), m.ID)
	if err != nil {
		t.Fatal(err)
	}
	if e := h.Live[0]; e.LastReply != "451 4.4.4 no route" || e.Attempts != 0 || len(h.Events) != 0 {
		t.Fatalf("entry %+v, history %+v", e, h.Events)
	}
	if _, err := NewAdmin(db.Pool).Retry(queuetest.Context(t), Filter{IDs: []queue.ID{m.ID}}, false); err != nil {
		t.Fatal(err)
	}
	q.Release(claimOne(t, q), []int{0}, time.Hour) // without a word
	queuetest.Becomes(t, db, m.ID, "0 waiting")
	if list, err := NewAdmin(db.Pool).List(queuetest.Context(t), Filter{}); err != nil || list[0].LastReply != "451 4.4.4 no route" {
		t.Fatalf("after a release: %+v, %v", list, err)
	}
}

// claimOne claims until a claim finds a message.
func claimOne(t *testing.T, q *queue.Queue) (d *queue.Delivery) {
	t.Helper()
	queuetest.Eventually(t, "a claim finds work", func() bool {
		list, err := q.Claim(queuetest.Context(t), queue.ClaimRequest{Messages: 10, PerDestination: 10})
		if err != nil || len(list) == 0 {
			return false
		}
		d = list[0]
		return true
	})
	return d
}

func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// An operator sees listed and counted what a verb would choose, and a message is shown as
// it is listed.
func TestStatementsAgree(t *testing.T) {
	t.Parallel()
	part := func(sql, from, to string) string {
		_, rest, begins := strings.Cut(sql, from)
		text, _, ends := strings.Cut(rest, to)
		if !begins || !ends {
			t.Fatalf("no %q … %q in %s", from, to, sql)
		}
		return text
	}
	filter := part(sqlList, "where ", "\tand (r.message_id")
	for _, sql := range []string{sqlInHand, toRetry.count, toHold.do, toCancel.do} {
		if !strings.Contains(sql, filter) {
			t.Errorf("another filter than that of list: %s", sql)
		}
	}
	if columns := part(sqlList, "select ", "where"); columns != part(sqlShow, "select ", "where") {
		t.Errorf("a message is shown otherwise than it is listed: %s", columns)
	}
}

// Counts are of a user's recipients.
func TestCounts(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	queuetest.Put(t, q, queuetest.Message(), true, "a@example.net", "b@example.net")
	if counts, err := NewAdmin(db.Pool).Counts(queuetest.Context(t), 1); err != nil || counts[StateSending] != 2 || len(counts) != 1 {
		t.Fatalf("%+v, %v", counts, err)
	}
}

// The history says what was at fault, if that was neither the recipient nor the message, and
// nothing of it for what was delivered. It has the ways that an attempt left.
func TestScope(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net", "b@example.net", "c@example.net", "d@example.net")
	for n, o := range []struct {
		result queue.Result
		scope  string
	}{{queue.Deferred, "account"}, {queue.Deferred, ""}, {queue.Failed, ""}, {queue.Delivered, ""}} {
		outcome := queuetest.Outcome(d, n, o.result)
		outcome.Scope, outcome.RetryIn = o.scope, time.Hour
		switch n {
		case 0:
			outcome.StaysWith = "first"
		case 3:
			outcome.Left = &[]queue.LeftWay{{Way: "first", Reply: "454 4.7.0 later", Scope: "account"}}
		}
		q.Settle(outcome)
	}
	queuetest.Becomes(t, db, m.ID, "0 waiting;1 waiting;2 failed")
	h, err := NewAdmin(db.Pool).Trace(queuetest.Context(t), m.ID)
	if err != nil || len(h.Events) != 4 {
		t.Fatalf("%+v, %v", h, err)
	}
	for _, e := range h.Events {
		if want := map[int]string{0: "account"}[e.N]; e.Scope != want {
			t.Errorf("recipient %d, %s: scope %q, want %q", e.N, e.Result, e.Scope, want)
		}
		if e.N != 3 && e.Left != nil || e.N == 3 && (len(e.Left) != 1 || e.Left[0].Way != "first" || e.Left[0].Scope != "account") {
			t.Errorf("recipient %d left %+v", e.N, e.Left)
		}
	}
	if n, err := NewAdmin(db.Pool).Staying(queuetest.Context(t), "first"); err != nil || n != 1 || h.Live[0].StaysWith != "first" {
		t.Errorf("%d stay with the first way, %v: %+v", n, err, h.Live[0])
	}
	var nulls int
	if err := db.Pool.QueryRow(queuetest.Context(t), `select count(*) from history where scope is null`).Scan(&nulls); err != nil || nulls != 3 {
		t.Errorf("%d rows without a scope, want 3: %v", nulls, err)
	}
}
