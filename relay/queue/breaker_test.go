package queue

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"postern/internal/pgtest"
)

func TestBreakerJudges(t *testing.T) {
	t.Parallel()
	all := Breaker{MinRecipients: 10, FirstTimeShare: 0.8, RejectedShare: 0.3, NewNetworkFactor: 5}
	for _, c := range []struct {
		b    Breaker
		a    activity
		want string
	}{
		{Breaker{MinRecipients: 1}, activity{Recipients: 100, FirstTime: 100, NewNetwork: 100, Rejected: 100}, ""},
		{all, activity{Recipients: 9, FirstTime: 9}, ""},
		{all, activity{Recipients: 10, FirstTime: 7}, ""},
		{all, activity{Recipients: 10, FirstTime: 8}, "8 of 10 recipients were never written to"},
		{all, activity{Recipients: 10, Delivered: 7, Rejected: 2}, ""},
		{all, activity{Recipients: 10, Delivered: 7, Rejected: 3}, "3 of 10 recipients were refused"},
		{all, activity{Recipients: 20, NewNetwork: 20, Mean: 5}, ""},
		{all, activity{Recipients: 25, NewNetwork: 25, Mean: 5}, "25 recipients from a new network"},
	} {
		if got := c.b.judge(c.a); (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.a, got, c.want)
		}
	}
}

// A user who suddenly writes to strangers is put on hold; mail is accepted and held,
// the event is told once, and a release ends it.
func TestBreakerTrips(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := calmConfig(db)
	tripped, ended := make(chan UserHold, 10), make(chan UserHold, 10)
	cfg.HoldMade = func(h UserHold) { tripped <- h }
	cfg.HoldEnded = func(h UserHold) { ended <- h }
	q := start(t, cfg)
	a := NewAdmin(db.Pool).As("root")
	send := func(to string) *Delivery {
		t.Helper()
		_, d := put(t, q, true, to)
		return d
	}
	// An old acquaintance, known from the history.
	d := send("friend@example.net")
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, d.Message.ID, "")
	settings := Breaker{MinRecipients: 5, FirstTimeShare: 0.9}
	if err := a.SetBreaker(ctxOf(t), settings); err != nil {
		t.Fatal(err)
	}
	if got, err := a.Breaker(ctxOf(t)); err != nil || got != settings {
		t.Fatalf("%+v, %v", got, err)
	}
	eventually(t, "the node follows", func() bool { return q.breaker.settings.Load().on() })
	still(q) // from here on it looks when it is told to
	for range 10 {
		send("friend@example.net")
	}
	look := func() {
		t.Helper()
		if err := errors.Join(q.breaker.look(ctxOf(t)), q.breaker.reload(ctxOf(t))); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if n := count(t, db, `select coalesce(sum(first_time), 0) from activity`); n != 0 {
		t.Fatalf("%d strangers among friends", n)
	}
	exec(t, db, `delete from activity`)
	for i := range 6 {
		send(fmt.Sprintf("stranger%d@example.net", i))
	}
	look()
	select {
	case e := <-tripped:
		if e.UserID != 1 || !strings.Contains(e.Reason, "never written to") {
			t.Errorf("%+v", e)
		}
	default:
		t.Fatal("it did not trip")
	}
	if d := send("stranger7@example.net"); !d.Held {
		t.Error("mail of a user on hold is handed to delivery")
	}
	if _, err := a.ReleaseUser(ctxOf(t), 1); err != nil {
		t.Fatal(err)
	}
	if d := send("friend@example.net"); d.Held {
		t.Error("mail is held after the release")
	}
	look()
	select {
	case h := <-ended:
		if h.UserID != 1 || h.MadeBy != "breaker" {
			t.Errorf("%+v ended", h)
		}
	default:
		t.Error("the end is not told")
	}
	if n := count(t, db, `select count(*) from hold`); n != 0 || len(tripped) != 0 {
		t.Error("it tripped again")
	}
}

// That somebody was written to again is noted once a month, so that who is written to
// stays known.
func TestCorrespondentsStayKnown(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	note := func(want int) {
		t.Helper()
		// One name twice, for a message to it may go out twice in a second.
		exec(t, db, sqlActivity, []int64{1, 1, 1}, []string{"a@example.net", "a@example.net", "b@example.net"}, []bool{false, false, false}, [][16]byte{}, []bool{})
		if n := count(t, db, `select count(*) from correspondent where seen_on = current_date`); n != want {
			t.Errorf("%d were seen today, want %d", n, want)
		}
	}
	note(2)
	exec(t, db, `update correspondent set seen_on = current_date - 30`)
	note(0)
	exec(t, db, `update correspondent set seen_on = current_date - 31`)
	note(2)
	if n := count(t, db, `select sum(first_time) from activity`); n != 2 {
		t.Errorf("%d were new", n)
	}
}
