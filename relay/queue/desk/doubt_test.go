package desk

import (
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
)

// doubted puts a message of which all recipients are in doubt: user 1 wants them held, or tried again.
func doubted(t *testing.T, db *pgtest.DB, q *queue.Queue, policy string, to ...string) queue.Message {
	t.Helper()
	queuetest.Exec(t, db, `insert into app_user (id, name, in_doubt) overriding system value values (1, 'alice@example.com', $1)
		on conflict (id) do update set in_doubt = $1`, policy)
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, to...)
	for n := range to {
		o := queuetest.Outcome(d, n, queue.Deferred)
		o.Unknown, o.Upstream, o.StaysWith, o.RetryIn = true, "out", "out", queue.DoubtWait
		q.Settle(o)
	}
	queuetest.Eventually(t, "all in doubt", func() bool {
		var n int
		err := db.Pool.QueryRow(queuetest.Context(t), `select count(*) from recipient where message_id = $1 and doubt = $2`, m.ID, policy).Scan(&n)
		return err == nil && n == len(to)
	})
	return m
}

// What is in doubt ends as delivered or goes by any way again, once, and is found by the filter. A
// release does not touch what is held for that.
func TestResolve(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.HandConfig(db))
	a, ctx := NewAdmin(db.Pool).As("root"), queuetest.Context(t)
	held := doubted(t, db, q, "hold", "a@example.net", "b@example.net", "c@example.net")
	doubted(t, db, q, "retry", "d@example.net")
	other := queuetest.Message()
	queuetest.Put(t, q, other, false, "e@example.net")
	queuetest.Becomes(t, db, other.ID, "0 waiting")
	do := func(f func(Filter, bool) (int, error), filter Filter, dry bool, want int) {
		t.Helper()
		if n, err := f(filter, dry); err != nil || n != want {
			t.Errorf("%d changed, want %d: %v", n, want, err)
		}
	}
	verb := func(f func(*Admin, Filter, bool) (int, error)) func(Filter, bool) (int, error) {
		return func(filter Filter, dry bool) (int, error) { return f(a, filter, dry) }
	}
	release := verb(func(a *Admin, f Filter, dry bool) (int, error) { return a.Release(ctx, f, dry) })
	deliver := verb(func(a *Admin, f Filter, dry bool) (int, error) { return a.ResolveDelivered(ctx, f, dry) })
	resend := verb(func(a *Admin, f Filter, dry bool) (int, error) { return a.ResolveResend(ctx, f, dry) })

	if list, err := a.List(ctx, Filter{InDoubt: true}); err != nil || len(list) != 4 || list[0].Doubt != "hold" || list[0].State != StateHeld || list[3].Doubt != "retry" || list[3].State != StateWaiting {
		t.Fatalf("%+v, %v", list, err)
	}
	if o, err := NewReader(db.Pool).Overview(ctx); err != nil || o.Doubted != 3 || o.Retried != 1 {
		t.Errorf("%+v, %v", o, err)
	}
	if n, err := a.Unresolved(ctx, Filter{}); err != nil || n != 3 {
		t.Errorf("%d unresolved, %v", n, err)
	}
	do(release, Filter{}, true, 0)
	do(release, Filter{}, false, 0)
	do(deliver, Filter{}, true, 4)
	do(deliver, Filter{Recipient: "a@example.net"}, false, 1)
	do(deliver, Filter{Recipient: "a@example.net"}, false, 0)
	do(resend, Filter{Recipient: "a@example.net"}, false, 0)
	do(resend, Filter{Recipient: "b@example.net"}, false, 1)
	do(resend, Filter{Recipient: "b@example.net"}, false, 0)
	do(deliver, Filter{Recipient: "b@example.net"}, false, 0)

	// The mail of a user on hold is held by that.
	if _, err := a.HoldUser(ctx, 1, 0, "test"); err != nil {
		t.Fatal(err)
	}
	do(resend, Filter{Recipient: "c@example.net"}, false, 1)
	queuetest.Exec(t, db, `update recipient set set_aside = 'bad' where local = 'd'`)
	do(resend, Filter{Recipient: "d@example.net"}, false, 1)
	list, err := a.List(ctx, Filter{})
	if err != nil || len(list) != 4 {
		t.Fatalf("%+v, %v", list, err)
	}
	for _, e := range list {
		if e.Doubt != "" || e.StaysWith != "" || e.State != StateHeld || e.Recipient != "e@example.net" && !e.PossibleDuplicate || (e.SetAside != "") != (e.Recipient == "d@example.net") {
			t.Errorf("%+v", e)
		}
	}
	var text string
	if err := db.Pool.QueryRow(ctx, `select string_agg(concat_ws(' ', result, local, reply_text), ';' order by at) from history where result in ('resolve', 'resend')`).Scan(&text); err != nil ||
		text != "resolve a by root;resend b by root;resend c by root;resend d by root" {
		t.Errorf("history %q, %v", text, err)
	}
	if err := db.Pool.QueryRow(ctx, `select string_agg(concat_ws(' ', result, reply_text), ';' order by at) from history where local in ('c', 'd') and result in ('resend', 'hold')`).Scan(&text); err != nil ||
		text != "hold by root;resend by root;hold the user is on hold: test;resend by root" {
		t.Errorf("history of the user on hold %q, %v", text, err)
	}
	if err := db.Pool.QueryRow(ctx, `select string_agg(concat_ws(' ', action, detail), ';' order by id) from audit where action = 'queue resolve' limit 1`).Scan(&text); err != nil ||
		!strings.HasPrefix(text, `queue resolve {"as": "delivered"}`) || !strings.Contains(text, `{"as": "resend"}`) {
		t.Errorf("audit %q, %v", text, err)
	}
	if sums, err := a.Summaries(ctx, []queue.ID{held.ID}); err != nil || sums[0].Delivered != 1 {
		t.Errorf("%+v, %v", sums, err)
	}
}

// Of an attempt and an operator who resolve the same recipient, one comes first; the other finds
// nothing to change.
func TestResolveRacesAnAttempt(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.HandConfig(db))
	a, ctx := NewAdmin(db.Pool), queuetest.Context(t)
	for round := range 20 {
		m := doubted(t, db, q, "retry", "a@example.net")
		queuetest.Exec(t, db, `update recipient set next_attempt_at = now()`)
		var claimed, resolved int
		var both sync.WaitGroup
		both.Go(func() {
			list, err := q.Claim(ctx, queue.ClaimRequest{Messages: 10, PerDestination: 10})
			if err != nil {
				t.Error(err)
			}
			for _, d := range list {
				claimed += len(d.Recipients)
				q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
			}
		})
		both.Go(func() {
			time.Sleep(time.Duration(round) * 200 * time.Microsecond)
			var err error
			if resolved, err = a.ResolveDelivered(ctx, Filter{IDs: []queue.ID{m.ID}}, false); err != nil {
				t.Error(err)
			}
		})
		both.Wait()
		if claimed+resolved > 1 {
			t.Fatalf("claimed %d and resolved %d", claimed, resolved)
		}
		if claimed+resolved == 0 { // each saw the other's lock
			if resolved, err := a.ResolveDelivered(ctx, Filter{IDs: []queue.ID{m.ID}}, false); err != nil || resolved != 1 {
				t.Fatalf("%d resolved later, %v", resolved, err)
			}
		}
		queuetest.Becomes(t, db, m.ID, "")
		var ends int
		if err := db.Pool.QueryRow(ctx, `select count(*) from history where message_id = $1 and result in ('delivered', 'resolve')`, m.ID).Scan(&ends); err != nil || ends != 1 {
			t.Fatalf("%d ends, %v", ends, err)
		}
	}
}
