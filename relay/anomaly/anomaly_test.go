package anomaly

import (
	"fmt"
	"strings"
	"testing"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/queue/desk"
)

func TestAnomalyJudges(t *testing.T) {
	t.Parallel()
	all := Signs{MinRecipients: 10, FirstTimeShare: 0.8, RejectedShare: 0.3, NewNetworkFactor: 5}
	for _, c := range []struct {
		b    Signs
		a    activity
		want string
	}{
		{Signs{MinRecipients: 1}, activity{Recipients: 100, FirstTime: 100, NewNetwork: 100, Rejected: 100}, ""},
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
func TestAnomalyTrips(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	d := New(Config{Pool: db.Pool})
	cfg := queuetest.Config(db)
	cfg.Watcher = d
	q := queuetest.Start(t, cfg)
	a := desk.NewAdmin(db.Pool).As("root")
	send := func(to string) *queue.Delivery {
		t.Helper()
		return queuetest.Put(t, q, queuetest.Message(), true, to)
	}
	// An old acquaintance, known from the history.
	first := send("friend@example.net")
	q.Settle(queuetest.Outcome(first, 0, queue.Delivered))
	queuetest.Becomes(t, db, first.Message.ID, "")
	settings := Signs{MinRecipients: 5, FirstTimeShare: 0.9}
	if err := Set(queuetest.Context(t), db.Pool, "root", settings); err != nil {
		t.Fatal(err)
	}
	if err := d.reload(queuetest.Context(t)); err != nil || *d.signs.Load() != settings {
		t.Fatalf("%+v, %v", d.signs.Load(), err)
	}
	for range 10 {
		send("friend@example.net")
	}
	look := func() {
		t.Helper()
		if err := d.look(queuetest.Context(t)); err != nil {
			t.Fatal(err)
		}
	}
	look()
	if n := queuetest.Count(t, db, `select coalesce(sum(first_time), 0) from activity`); n != 0 {
		t.Fatalf("%d strangers among friends", n)
	}
	queuetest.Exec(t, db, `delete from activity`)
	for i := range 6 {
		send(fmt.Sprintf("stranger%d@example.net", i))
	}
	look()
	if list, err := a.UserHolds(queuetest.Context(t)); err != nil || len(list) != 1 || list[0].UserID != 1 || list[0].MadeBy != By || !strings.Contains(list[0].Reason, "never written to") {
		t.Fatalf("it did not trip: %+v, %v", list, err)
	}
	if d := send("stranger7@example.net"); d != nil {
		t.Error("mail of a user on hold is handed to delivery")
	}
	if _, err := a.ReleaseUser(queuetest.Context(t), 1); err != nil {
		t.Fatal(err)
	}
	if d := send("friend@example.net"); d == nil {
		t.Error("mail is held after the release")
	}
	look()
	if n := queuetest.Count(t, db, `select count(*) from hold`); n != 0 {
		t.Error("it tripped again")
	}
}

// The mail of the last second before a stop counts too.
func TestCloseWritesTheLastNotes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	if err := Set(queuetest.Context(t), db.Pool, "root", Signs{MinRecipients: 5, FirstTimeShare: 0.9}); err != nil {
		t.Fatal(err)
	}
	d := New(Config{Pool: db.Pool})
	if err := d.reload(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	d.Start()
	m := queuetest.Message()
	d.Accepted(&m, queuetest.Recipients("a@example.net"))
	d.Close()
	if n := queuetest.Count(t, db, `select coalesce(sum(recipients), 0) from activity`); n != 1 {
		t.Errorf("%d recipients are counted, want 1", n)
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
		queuetest.Exec(t, db, sqlNote, []int64{1, 1, 1}, []string{"a@example.net", "a@example.net", "b@example.net"}, []bool{false, false, false}, [][16]byte{}, []bool{})
		if n := queuetest.Count(t, db, `select count(*) from correspondent where seen_on > current_date - 10`); n != want {
			t.Errorf("%d were seen now, want %d", n, want)
		}
	}
	note(2)
	queuetest.Exec(t, db, `update correspondent set seen_on = current_date - 29`) // 30 if a day begins meanwhile
	note(0)
	queuetest.Exec(t, db, `update correspondent set seen_on = current_date - 31`)
	note(2)
	if n := queuetest.Count(t, db, `select sum(first_time) from activity`); n != 2 {
		t.Errorf("%d were new", n)
	}
}

func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}
