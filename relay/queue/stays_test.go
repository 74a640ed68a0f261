package queue

import (
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// TestP12StaysWith: a row has its way from the gate on until the outcome is known, and to its end if
// it never is.
func TestP12StaysWith(t *testing.T) {
	t.Parallel()
	for _, strict := range []bool{false, true} {
		db := pgtest.New(t)
		cfg := handConfig(db, "a")
		cfg.StrictGate = strict
		clock := &fakeClock{}
		q, other := start(t, cfg), start(t, handConfig(db, "b"), withClock(clock))
		m, d := put(t, q, true, "0@example.net", "1@example.net", "2@example.net", "3@example.net", "4@example.net", "5@example.net", "6@example.net")
		stays := func(want string) {
			t.Helper()
			const sql = `select string_agg(concat(n, ':', stays_with), ' ' order by n) from recipient where message_id = $1`
			eventually(t, "ways "+want, func() bool { return read(t, db, sql, m.ID) == want })
		}
		gate := func(way string, ns ...int) {
			t.Helper()
			if err := q.Gate(ctxOf(t), d, ns, way); err != nil {
				t.Fatal(err)
			}
		}
		gate("out", 0, 1, 2, 3, 4)
		gate("", 5) // a route of one way
		stays("0:out 1:out 2:out 3:out 4:out 5: 6:")
		gate("mx", 1) // out has refused it since
		end := func(n int, result Result, unknown bool) Outcome {
			o := outcome(d, n, result)
			o.Upstream, o.Unknown, o.RetryIn = "out", unknown, 0
			if unknown {
				o.StaysWith = "out"
			}
			return o
		}
		q.Settle(end(0, Deferred, false), end(1, Delivered, false), end(2, Deferred, true), end(5, Deferred, true))
		q.Release(d, []int{3}, 0)
		stays("0: 2:out 3: 4:out 5:out 6:")
		die(t, db, d.Epoch, other, clock)
		stays("0: 2:out 3: 4:out 5:out 6:")
		// Rows that the strict gate has marked wait as after a lost reply.
		exec(t, db, `update recipient set next_attempt_at = now() where owner is null`)
		again := claimAll(t, other, all)
		if len(again) != 1 || len(again[0].Recipients) != 6 {
			t.Fatalf("claimed %+v", again)
		}
		for _, r := range again[0].Recipients {
			want := map[int]string{2: "out", 4: "out", 5: "out"}[r.N]
			if r.StaysWith != want || want != "" && !r.PossibleDuplicate {
				t.Errorf("recipient %d: %+v, want it to stay with %q", r.N, r, want)
			}
		}
		d = again[0]
		other.Release(d, []int{2, 4, 5, 6}, time.Hour)
		stays("0: 2:out 3: 4:out 5:out 6:")
	}
}

// TestLeftWays: the history of an attempt has the ways that it left, and is null without.
func TestLeftWays(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net", "c@example.net", "d@example.net")
	left := &[]LeftWay{{Way: "out", Host: "h", Reply: "451 4.3.0 it said \"no\"\x00", Scope: "host", At: time.Now()}, {Way: "two", Reply: "paused"}}
	var outcomes []Outcome
	for n, result := range []Result{Delivered, Delivered, Deferred, Delivered} {
		o := outcome(d, n, result)
		if o.Upstream = "three"; n < 3 {
			o.Left = left
		}
		outcomes = append(outcomes, o)
	}
	q.Settle(outcomes...)
	becomes(t, db, m.ID, "2 waiting")
	got := read(t, db, `select string_agg(concat_ws(' ', n, left_ways->0->>'way', left_ways->0->>'scope', left_ways->1->>'reply', jsonb_array_length(left_ways)), ';' order by n) from history where message_id = $1`, m.ID)
	if want := "0 out host paused 2;1 out host paused 2;2 out host paused 2;3"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if (*left)[0].Reply[len((*left)[0].Reply)-1] != 0 {
		t.Error("what others read was changed")
	}
}

// TestFaultNotice: a delay that is the relay's fault is told after an hour, others after theirs.
func TestFaultNotice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net", "c@example.net", "d@example.net")
	for n, scope := range []string{"account", "sender", "host", "account"} {
		o := outcome(d, n, Deferred)
		o.Reply, o.Scope, o.RetryIn, o.NotAnAttempt = smtp.Temporary(451, 4, 0, "no"), scope, time.Hour, n == 3
		q.Settle(o)
	}
	becomes(t, db, m.ID, "0 waiting;1 waiting;2 waiting;3 waiting")
	if got := read(t, db, `select string_agg(concat_ws(' ', n, scope, notice_at - accepted_at), ';' order by n) from recipient where message_id = $1`, m.ID); got != "0 account 01:00:00;1 sender 01:00:00;2 host 04:00:00;3 account 01:00:00" {
		t.Errorf("%q", got)
	}
	exec(t, db, `update recipient set notice_at = now() where n = 0`)
	notices, err := q.ClaimNotices(ctxOf(t), 10)
	if err != nil || len(notices) != 1 || notices[0].Recipients[0].Scope != "account" {
		t.Fatalf("%+v, %v", notices, err)
	}
	q.ReleaseNotice(notices[0], time.Hour)
}

// TestFaultOfAHost: the relay is at fault for an upstream that is not there, though nothing was tried
// there, and not for a recipient's mail host. An admin finds the mail by the upstream's name.
func TestFaultOfAHost(t *testing.T) {
	t.Parallel()
	for via, want := range map[string]string{"out": "host", "mx": ""} {
		db := pgtest.New(t)
		q := start(t, calmConfig(db))
		m, d := put(t, q, true, "a@example.net")
		o := outcome(d, 0, Deferred)
		o.Upstream, o.Scope, o.RetryIn, o.NotAnAttempt = via, "host", time.Hour, true
		q.Settle(o)
		becomes(t, db, m.ID, "0 waiting")
		if got := read(t, db, `select last_upstream from recipient where message_id = $1`, m.ID); got != via {
			t.Errorf("it waits for %q, want %q", got, via)
		}
		exec(t, db, `update recipient set expires_at = now(), next_attempt_at = now()`)
		eventually(t, "its lifetime ends", func() bool {
			if got, err := q.Claim(ctxOf(t), all); err != nil || len(got) > 0 {
				t.Fatalf("claim gave %v, %v", got, err)
			}
			return rows(t, db, m.ID) == "0 failed"
		})
		notices, err := q.ClaimNotices(ctxOf(t), 10)
		if err != nil || len(notices) != 1 || notices[0].Recipients[0].Scope != want {
			t.Errorf("%s: %+v, %v", via, notices, err)
		}
	}
}
