package queue

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/pg"
	"postern/internal/pgtest"
)

// TestR2Recovered: what waits only for its destination is due when that is back, and
// nothing else is.
func TestR2Recovered(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	_, d := put(t, q, true, "a@one.example", "b@one.example", "c@two.example", "d@three.example")
	for n, o := range []struct {
		upstream string
		waitsFor string
	}{{"mx", "mx one.example"}, {"mx", ""}, {"mx", "mx two.example"}, {"out", "upstream out"}} {
		end := outcome(d, n, Deferred)
		end.Upstream, end.WaitsFor, end.RetryIn = o.upstream, o.waitsFor, time.Hour
		q.Settle(end)
	}
	becomes(t, db, d.Message.ID, "0 waiting;1 waiting;2 waiting;3 waiting")
	q.Recovered(Way("mx", "one.example"))
	q.Recovered(Way("out", ""))
	eventually(t, "the rows of both ways are due", func() bool {
		return count(t, db, `select count(*) from recipient where next_attempt_at <= now() and waits_for is null and n in (0, 3)`) == 2
	})
	if n := count(t, db, `select count(*) from recipient where next_attempt_at <= now()`); n != 2 {
		t.Errorf("%d rows are due, want 2", n)
	}
	if n := count(t, db, `select count(*) from recipient where waits_for = 'mx two.example' and n = 2`); n != 1 {
		t.Error("the row of the other destination does not wait for it any more")
	}
	claimed := claimAll(t, q, ClaimRequest{Messages: 10, PerDestination: 10})
	if len(claimed) != 1 || len(claimed[0].Recipients) != 2 {
		t.Errorf("claimed %+v, want recipients 0 and 3", claimed)
	}
}

// TestR2NothingWasTried: mail that came while its destination was left alone waits for it
// without an attempt and without a line in the history. Its delay notice comes at its time
// all the same, and it does not outlive its lifetime.
func TestR2NothingWasTried(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@one.example")
	end := outcome(d, 0, Deferred)
	end.Upstream, end.WaitsFor, end.NotAnAttempt, end.RetryIn = "mx", "mx one.example", true, 1000*time.Hour
	q.Settle(end)
	becomes(t, db, m.ID, "0 waiting")
	if n := count(t, db, `select count(*) from recipient where attempts = 0 and last_attempt_at is null and reply_text = 'later'
		and waits_for = 'mx one.example' and last_upstream = 'mx' and notice_at > now() + interval '3 hours' and next_attempt_at = expires_at`); n != 1 {
		t.Error("the row is not as it should be")
	}
	if got := history(t, db, m.ID); got != "" {
		t.Errorf("history %q", got)
	}
	q.Recovered(Way("mx", "one.example"))
	if got := claimAll(t, q, all); got[0].Recipients[0].Attempts != 0 {
		t.Errorf("claimed %+v", got[0].Recipients)
	}
}

// A claim says what the row waited for. It still does when it is given back, until an attempt ends.
func TestR2AttemptEndsTheWait(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	_, d := put(t, q, true, "a@one.example")
	end := outcome(d, 0, Deferred)
	end.Upstream, end.WaitsFor, end.RetryIn = "out", "budget out", 0
	q.Settle(end)
	for range 2 {
		d = claimAll(t, q, ClaimRequest{Messages: 10, PerDestination: 10})[0]
		if r := d.Recipients[0]; r.WaitsFor != "budget out" {
			t.Errorf("%+v", r)
		}
		q.Release(d, []int{0}, 0)
	}
	d = claimAll(t, q, ClaimRequest{Messages: 10, PerDestination: 10})[0]
	q.Settle(outcome(d, 0, Deferred))
	eventually(t, "the end of the wait", func() bool {
		return count(t, db, `select count(*) from recipient where owner is null and waits_for is null`) == 1
	})
}

// The rows of a way are found by their index, however many there are of others.
func TestR2RecoveredPlan(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec(t, db, pgtest.LoadBacklog, 1, 2000, backlogDomains)
	exec(t, db, `vacuum analyze`)
	for sql, index := range map[string]string{sqlRecovered: "recipient_way", sqlOneDue: "recipient_waits"} {
		plan := pgtest.GenericPlan(t, db, pg.TuneWork, sql)
		if !strings.Contains(plan, index) || strings.Contains(plan, "Seq Scan") || index == "recipient_way" && strings.Contains(plan, "Sort") {
			t.Errorf("plan:\n%s", plan)
		}
	}
}

// Of more rows than one statement makes due those come first that were accepted first, whenever
// their next attempt was to be.
func TestR2RecoveredInOrder(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	var list []Message
	for i := range 6 {
		m, d := put(t, q, true, "a@one.example")
		end := outcome(d, 0, Deferred)
		end.Upstream, end.WaitsFor, end.RetryIn = "mx", "mx one.example", time.Hour-time.Duration(i)*time.Minute
		q.Settle(end)
		list = append(list, m)
	}
	waiting(t, db, 6)
	exec(t, db, sqlRecovered, []string{"mx one.example"}, 3)
	for i, m := range list {
		if due := count(t, db, `select count(*) from recipient where message_id = $1 and next_attempt_at <= now()`, m.ID); (due == 1) != (i < 3) {
			t.Errorf("message %d: %d due", i, due)
		}
	}
}

// Another node hears which way is back, and only of one for which mail waits; an outcome
// that was on its way at the first look is found by the second.
func TestR2RecoveredIsTold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	a := start(t, calmConfig(db))
	cfg := calmConfig(db)
	cfg.Node = "b"
	b := start(t, cfg)
	_, d := put(t, a, true, "x@one.example", "y@one.example")
	suspend := func(n int) {
		end := outcome(d, n, Deferred)
		end.Upstream, end.WaitsFor, end.RetryIn = "out", "upstream out", time.Hour
		a.Settle(end)
	}
	suspend(0)
	eventually(t, "the first waits", func() bool {
		return count(t, db, `select count(*) from recipient where waits_for = 'upstream out'`) == 1
	})
	a.Recovered(Way("nobody", ""))
	a.Recovered(Way("out", ""))
	var heard []string
	eventually(t, "the other node hears of it", func() bool {
		heard = append(heard, b.Back()...)
		return len(heard) > 0
	})
	suspend(1)
	eventually(t, "both are due", func() bool {
		return count(t, db, `select count(*) from recipient where waits_for is null and next_attempt_at <= now()`) == 2
	})
	for _, way := range append(heard, b.Back()...) {
		if way != Way("out", "") {
			t.Errorf("heard that %q is back", way)
		}
	}
}

// Destinations that are met one after the other, as by a node that sends to many domains,
// do not put off what waits for one of them.
func TestR2RecoveredIsNotPutOff(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	_, d := put(t, q, true, "a@one.example")
	end := outcome(d, 0, Deferred)
	end.Upstream, end.WaitsFor, end.RetryIn = "out", "upstream out", time.Hour
	q.Settle(end)
	becomes(t, db, d.Message.ID, "0 waiting")
	q.Recovered(Way("out", ""))
	ctx, cancel := context.WithCancel(ctxOf(t))
	defer cancel()
	var news sync.WaitGroup
	defer news.Wait()
	defer cancel()
	news.Go(func() {
		for ctx.Err() == nil {
			q.Recovered(Way("mx", "one.example"))
			time.Sleep(recoveredPause / 50)
		}
	})
	for count(t, db, `select count(*) from recipient where waits_for is null`) == 0 {
		if ctx.Err() != nil {
			t.Fatal("the row still waits, for as long as there was news of other destinations")
		}
		time.Sleep(recoveredPause)
	}
}

// OneDue makes the row due that would wait the longest for one of the ways.
func TestOneDue(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "0@example.net", "1@example.net", "2@example.org", "3@example.net", "4@example.com")
	for n, way := range []string{"upstream out", "upstream out", "upstream two", "upstream other", "upstream out"} {
		o := outcome(d, n, Deferred)
		o.WaitsFor, o.RetryIn, o.NotAnAttempt = way, time.Duration(n+1)*time.Hour, true
		q.Settle(o)
	}
	becomes(t, db, m.ID, "0 waiting;1 waiting;2 waiting;3 waiting;4 waiting")
	exec(t, db, `update recipient set held_at = now() where n = 4`)
	for _, want := range []string{"2", "1 2"} {
		if found, err := q.OneDue(ctxOf(t), []string{"upstream out", "upstream two"}); !found || err != nil {
			t.Fatal(found, err)
		}
		if got := read(t, db, `select string_agg(n::text, ' ' order by n) from recipient where next_attempt_at <= now()`); got != want {
			t.Errorf("due is %s, want %s", got, want)
		}
	}
	if claimed := claimAll(t, q, all); len(claimed) != 1 || len(claimed[0].Recipients) != 2 {
		t.Errorf("claimed %+v", claimed)
	}
	if found, err := q.OneDue(ctxOf(t), []string{"upstream two"}); found || err != nil {
		t.Errorf("%v, %v", found, err)
	}
}
