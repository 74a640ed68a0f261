package queue

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/relay/smtp"
)

// What operators do moves recipients as docs/queue-states.md says, never touches
// what a node has in hand, changes nothing in a dry run, and is recorded.
func TestOperate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	a := NewAdmin(db.Pool).As("root")
	m, d := put(t, q, true, "a@example.net", "b@example.net", "c@example.org")
	for _, n := range []int{0, 2} {
		o := outcome(d, n, Deferred)
		o.RetryIn, o.Upstream = time.Hour, "out"
		q.Settle(o)
	}
	becomes(t, db, m.ID, "0 queued;1 queued owned;2 queued")
	state := func() string {
		t.Helper()
		list, err := a.List(ctxOf(t), Filter{})
		if err != nil {
			t.Fatal(err)
		}
		s := ""
		for _, e := range list {
			s += fmt.Sprintf("%d %s;", e.N, e.State)
		}
		return s
	}
	type do func(*Admin) (int, error)
	verb := func(v func(*Admin, Filter, bool) (int, error), f Filter, dry bool) do {
		return func(a *Admin) (int, error) { return v(a, f, dry) }
	}
	hold := func(a *Admin, f Filter, dry bool) (int, error) { return a.Hold(ctxOf(t), f, dry) }
	release := func(a *Admin, f Filter, dry bool) (int, error) { return a.Release(ctxOf(t), f, dry) }
	retry := func(a *Admin, f Filter, dry bool) (int, error) { return a.Retry(ctxOf(t), f, dry) }
	cancel := func(a *Admin, f Filter, dry bool) (int, error) { return a.Cancel(ctxOf(t), f, dry) }
	for i, step := range []struct {
		do   do
		n    int
		want string
	}{
		{verb(hold, Filter{}, true), 2, "0 waiting;1 sending;2 waiting;"},
		{verb(hold, Filter{Domain: "example.net"}, false), 1, "0 held;1 sending;2 waiting;"},
		{verb(retry, Filter{}, true), 1, "0 held;1 sending;2 waiting;"},
		{verb(retry, Filter{State: StateHeld}, false), 0, "0 held;1 sending;2 waiting;"},
		{verb(release, Filter{UserID: 2}, false), 0, "0 held;1 sending;2 waiting;"},
		{verb(release, Filter{UserID: 1, Sender: "ALICE@example.com", Recipient: "a@Example.net", Upstream: "out"}, true), 1, "0 held;1 sending;2 waiting;"},
		{verb(hold, Filter{Reply: "450 2.1.0 later"}, true), 0, "0 held;1 sending;2 waiting;"},
		{verb(hold, Filter{Reply: "450 4.2.1 la"}, true), 1, "0 held;1 sending;2 waiting;"},
		{verb(cancel, Filter{OlderThan: time.Hour}, false), 0, "0 held;1 sending;2 waiting;"},
		{verb(cancel, Filter{Domain: "example.org"}, false), 1, "0 held;1 sending;"},
		{verb(cancel, Filter{IDs: []ID{NewID()}}, false), 0, "0 held;1 sending;"},
		{verb(cancel, Filter{IDs: []ID{m.ID}}, false), 1, "1 sending;"},
	} {
		n, err := step.do(a)
		if err != nil || n != step.n || state() != step.want {
			t.Fatalf("step %d: %d, %v, then %s", i, n, err, state())
		}
	}
	if n, err := a.InHand(ctxOf(t), Filter{Sender: "alice@example.com"}); err != nil || n != 1 {
		t.Errorf("%d in hand, %v", n, err)
	}
	if n, err := a.InHand(ctxOf(t), Filter{Domain: "example.org"}); err != nil || n != 0 {
		t.Errorf("%d in hand, %v", n, err)
	}
	if n := count(t, db, `select count(*) from body`); n != 1 {
		t.Fatal("the body of a message that is being sent is gone")
	}
	q.Settle(outcome(d, 1, Delivered))
	becomes(t, db, m.ID, "")
	if n := count(t, db, `select count(*) from body`); n != 0 {
		t.Fatal("a body is left")
	}
	if got := history(t, db, m.ID); got != "0 deferred;2 deferred;0 hold;2 cancel;0 cancel;1 delivered" {
		t.Errorf("history %q", got)
	}
	if n := count(t, db, `select count(*) from audit where actor = 'root' and action = 'queue hold' and object = 'domain example.net'`); n != 1 {
		t.Errorf("%d audit rows", n)
	}
	if n := count(t, db, `select count(*) from audit`); n != 7 {
		t.Errorf("%d audit rows, 7 verbs were no dry runs", n)
	}
}

func TestUserHold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	a := NewAdmin(db.Pool).As("root")
	waiting := func(user int64) Message {
		m := message()
		m.UserID = user
		d, err := q.Enqueue(ctxOf(t), m, rcpts("a@example.net"), NewBody([]byte("x")), true)
		if err != nil || d == nil {
			t.Fatalf("%v, %v", d, err)
		}
		o := outcome(d, 0, Deferred)
		o.RetryIn = time.Hour
		q.Settle(o)
		becomes(t, db, m.ID, "0 queued")
		return m
	}
	mine, other := waiting(1), waiting(2)
	state := func(id ID) State {
		list, err := a.List(ctxOf(t), Filter{IDs: []ID{id}})
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0].State
	}
	if n, err := a.HoldUser(ctxOf(t), 1, 0, "stolen"); err != nil || n != 1 || state(mine.ID) != StateHeld || state(other.ID) != StateWaiting {
		t.Fatalf("%d, %v, %s, %s", n, err, state(mine.ID), state(other.ID))
	}
	if list, err := a.UserHolds(ctxOf(t)); err != nil || len(list) != 1 || list[0].Reason != "stolen" || list[0].MadeBy != "root" {
		t.Fatalf("%+v, %v", list, err)
	}
	if n, err := a.ReleaseUser(ctxOf(t), 1); err != nil || n != 1 || state(mine.ID) != StateWaiting {
		t.Fatalf("%d, %v, %s", n, err, state(mine.ID))
	}
	if _, err := a.HoldUser(ctxOf(t), 1, 0, "again"); err != nil {
		t.Fatal(err)
	}
	if n, err := a.CancelUser(ctxOf(t), 1); err != nil || n != 1 || state(other.ID) != StateWaiting {
		t.Fatalf("%d, %v", n, err)
	}
	if list, err := a.UserHolds(ctxOf(t)); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	becomes(t, db, mine.ID, "")
	if n := count(t, db, `select count(*) from audit where action = 'queue hold' and object = 'user 1' and detail->>'reason' = 'stolen'`); n != 1 {
		t.Errorf("%d audit rows of the first hold", n)
	}
	if n := count(t, db, `select count(*) from audit where detail->>'user_hold' = 'ended'`); n != 2 {
		t.Errorf("%d audit rows of ends, want 2", n)
	}
}

// A row that came back to waiting just when its user was put on hold is caught up with.
func TestHoldCatchesUp(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	_, d := put(t, q, true, "a@example.net")
	o := outcome(d, 0, Deferred)
	o.RetryIn = time.Hour
	q.Settle(o)
	becomes(t, db, d.Message.ID, "0 queued")
	exec(t, db, `insert into hold (user_id, reason, made_by, made_at) values (1, 'x', 'y', clock_timestamp() - interval '3 minutes')`)
	held := func() int { return count(t, db, `select count(*) from recipient where held_at is not null`) }
	eventually(t, "it is held", func() bool { return held() == 1 })
	// An admin's word about one message stands.
	if _, err := NewAdmin(db.Pool).Release(ctxOf(t), Filter{IDs: []ID{d.Message.ID}}, false); err != nil {
		t.Fatal(err)
	}
	still(q)
	if err := newHolds(q).look(ctxOf(t)); err != nil || held() != 0 {
		t.Errorf("%d are held after the release, %v", held(), err)
	}
}

func TestShapeAndFind(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	a := NewAdmin(db.Pool)
	first, _ := put(t, q, true, "a@example.net", "b@example.net", "A@example.org")
	dotted := message()
	dotted.MessageID, dotted.Sender = "<dots@example.com>", address("carol@example.com")
	if _, err := q.Enqueue(ctxOf(t), dotted, []Recipient{{Address: smtp.Address{Local: "foo..Bar", Domain: "example.org"}}}, NewBody([]byte("x")), false); err != nil {
		t.Fatal(err)
	}
	second, d := put(t, q, true, "c@example.net")
	shape, err := a.Shape(ctxOf(t), 10)
	if err != nil || len(shape) != 2 || shape[0].Domain != "example.net" || shape[0].Total != 3 || shape[0].Ages[0] != 3 || len(shape[0].Ages) != 6 {
		t.Fatalf("%+v, %v", shape, err)
	}
	q.Settle(outcome(d, 0, Delivered))
	becomes(t, db, second.ID, "")
	list, err := a.Summaries(ctxOf(t), []ID{second.ID, NewID(), first.ID})
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if s := list[0]; s.ID != second.ID || s.Recipient != "c@example.net" || s.Recipients != 1 || s.Delivered != 1 || s.Sending+s.Waiting+s.Held+s.Failed+s.Cancelled > 0 {
		t.Errorf("%+v", s)
	}
	if s := list[1]; s.ID != first.ID || s.Recipient != "a@example.net" || s.Recipients != 3 || s.Sending != 3 || s.Delivered != 0 || s.Sender != "alice@example.com" {
		t.Errorf("%+v", s)
	}
	for what, want := range map[string][]ID{
		"<m@example.com>": {second.ID, first.ID}, "m@example.com": {second.ID, first.ID},
		"foo..bar@example.org": {dotted.ID}, `"foo..bar"@example.org`: {dotted.ID}, `<"foo..bar"@Example.org>`: {dotted.ID},
		"c@example.net": {second.ID}, "a@EXAMPLE.org": {first.ID}, "<alice@example.com>": {second.ID, first.ID}, "": nil, "<>": nil, "nobody@example.net": nil,
	} {
		got, err := a.Find(ctxOf(t), what, 10)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", what, got, err, want)
		}
	}
}

// The reply that a destination is shown with is the one that came last.
func TestShapeHasTheLastReply(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net", "b@example.net", "c@example.net")
	for n := range 2 {
		o := outcome(d, n, Deferred)
		o.At, o.RetryIn = o.At.Add(time.Duration(n)*time.Second), time.Hour
		o.Reply = []smtp.Reply{smtp.Temporary(451, 4, 0, "zzz earlier"), smtp.Temporary(421, 4, 0, "later")}[n]
		q.Settle(o)
	}
	becomes(t, db, m.ID, "0 queued;1 queued;2 queued owned")
	shape, err := NewAdmin(db.Pool).Shape(ctxOf(t), 10)
	if err != nil || len(shape) != 1 || shape[0].LastErr != "421 4.4.0 later" {
		t.Fatalf("%+v, %v", shape, err)
	}
}

// Mail that was accepted by a version that did not note its user is found by its message.
func TestMailOfAnEarlierVersion(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	a := NewAdmin(db.Pool)
	m, d := put(t, q, true, "a@example.net")
	if n := count(t, db, `select user_id from recipient`); n != 1 {
		t.Fatalf("user %d", n)
	}
	q.Release(d, []int{0}, time.Hour)
	becomes(t, db, m.ID, "0 queued")
	still(q) // it would catch up with the holds too
	exec(t, db, `update recipient set user_id = -1`)
	for user, want := range map[int64]int{1: 1, 2: 0} {
		if n, err := a.Hold(ctxOf(t), Filter{UserID: user}, true); err != nil || n != want {
			t.Errorf("user %d: %d recipients would be held, %v", user, n, err)
		}
		if counts, err := a.Counts(ctxOf(t), user); err != nil || counts[StateWaiting] != want {
			t.Errorf("user %d: %v, %v", user, counts, err)
		}
		exec(t, db, `insert into hold (user_id, reason, made_by) values ($1, '', '')`, user)
		exec(t, db, sqlCatchUpHolds, []int64{user})
		if n := count(t, db, `select count(*) from recipient where held_at is not null`); n != want {
			t.Errorf("user %d: the hold caught up with %d recipients", user, n)
		}
		exec(t, db, `update recipient set held_at = null`)
		exec(t, db, `delete from hold`)
	}
}

// An address in a domain that is not ASCII is found as it came, in A-labels, as it is shown,
// and in U-labels, whichever of them the client wrote.
func TestFindInEverySpelling(t *testing.T) {
	t.Parallel()
	for _, written := range []string{"Bücher.example", "xn--BCHER-kva.example"} {
		db := pgtest.New(t)
		q := start(t, calmConfig(db))
		a := NewAdmin(db.Pool)
		m := message()
		m.Sender = address("Alice@" + written)
		d, err := q.Enqueue(ctxOf(t), m, rcpts("Bob@"+written, "carol@example.net"), NewBody([]byte("x")), true)
		if err != nil {
			t.Fatal(err)
		}
		for _, typed := range []string{"bücher.example", "Bücher.Example", "xn--bcher-kva.example", "XN--bcher-kva.Example"} {
			for _, f := range []Filter{{Recipient: "bob@" + typed}, {Sender: "alice@" + typed}} {
				if list, err := a.List(ctxOf(t), f); err != nil || len(list) == 0 {
					t.Errorf("%s, written %s: %+v, %v", f.String(), written, list, err)
				}
			}
		}
		q.Settle(outcome(d, 0, Delivered), outcome(d, 1, Delivered))
		becomes(t, db, m.ID, "")
		for _, typed := range []string{"bücher.example", "Bücher.Example", "xn--bcher-kva.example", "XN--bcher-kva.Example"} {
			for _, what := range []string{"bob@" + typed, "<Alice@" + typed + ">"} {
				if ids, err := a.Find(ctxOf(t), what, 9); err != nil || !slices.Equal(ids, []ID{m.ID}) {
					t.Errorf("%s, written %s: %v, %v", what, written, ids, err)
				}
			}
		}
		if list, err := a.List(ctxOf(t), Filter{Recipient: "bob@buecher.example"}); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	}
}
