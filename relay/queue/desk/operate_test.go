package desk

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
	"postern/relay/queue"
	"postern/relay/queue/content"
	"postern/relay/smtp"
)

// What operators do moves recipients as docs/queue-states.md says, never touches
// what a node has in hand, changes nothing in a dry run, and is recorded.
func TestOperate(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool).As("root")
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net", "b@example.net", "c@example.org")
	for _, n := range []int{0, 2} {
		o := queuetest.Outcome(d, n, queue.Deferred)
		o.RetryIn, o.Upstream, o.WaitsFor = time.Hour, "out", []string{"sessions out", "", queue.Route}[n]
		q.Settle(o)
	}
	queuetest.Becomes(t, db, m.ID, "0 waiting;1 waiting owned;2 waiting")
	state := func() string {
		t.Helper()
		list, err := a.List(queuetest.Context(t), Filter{})
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
	hold := func(a *Admin, f Filter, dry bool) (int, error) { return a.Hold(queuetest.Context(t), f, dry) }
	release := func(a *Admin, f Filter, dry bool) (int, error) { return a.Release(queuetest.Context(t), f, dry) }
	retry := func(a *Admin, f Filter, dry bool) (int, error) { return a.Retry(queuetest.Context(t), f, dry) }
	cancel := func(a *Admin, f Filter, dry bool) (int, error) { return a.Cancel(queuetest.Context(t), f, dry) }
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
		{verb(cancel, Filter{WaitsFor: []string{"upstream", "budget out"}}, true), 0, "0 held;1 sending;2 waiting;"},
		{verb(cancel, Filter{WaitsFor: []string{"budget", "sessions"}}, true), 1, "0 held;1 sending;2 waiting;"},
		{verb(retry, Filter{WaitsFor: []string{"route"}}, true), 1, "0 held;1 sending;2 waiting;"},
		{verb(cancel, Filter{OlderThan: time.Hour}, false), 0, "0 held;1 sending;2 waiting;"},
		{verb(cancel, Filter{Domain: "example.org"}, false), 1, "0 held;1 sending;"},
		{verb(cancel, Filter{IDs: []queue.ID{queue.NewID()}}, false), 0, "0 held;1 sending;"},
		{verb(cancel, Filter{IDs: []queue.ID{m.ID}}, false), 1, "1 sending;"},
	} {
		n, err := step.do(a)
		if err != nil || n != step.n || state() != step.want {
			t.Fatalf("step %d: %d, %v, then %s", i, n, err, state())
		}
	}
	if n, err := a.InHand(queuetest.Context(t), Filter{Sender: "alice@example.com"}); err != nil || n != 1 {
		t.Errorf("%d in hand, %v", n, err)
	}
	if n, err := a.InHand(queuetest.Context(t), Filter{Domain: "example.org"}); err != nil || n != 0 {
		t.Errorf("%d in hand, %v", n, err)
	}
	if n := queuetest.Count(t, db, `select count(*) from body`); n != 1 {
		t.Fatal("the body of a message that is being sent is gone")
	}
	q.Settle(queuetest.Outcome(d, 1, queue.Delivered))
	queuetest.Becomes(t, db, m.ID, "")
	if n := queuetest.Count(t, db, `select count(*) from body`); n != 0 {
		t.Fatal("a body is left")
	}
	if got := history(t, db, m.ID); got != "0 deferred;2 deferred;0 hold;2 cancel;0 cancel;1 delivered" {
		t.Errorf("history %q", got)
	}
	if n := queuetest.Count(t, db, `select count(*) from audit where actor = 'root' and action = 'queue hold' and object = 'domain example.net'`); n != 1 {
		t.Errorf("%d audit rows", n)
	}
	if n := queuetest.Count(t, db, `select count(*) from audit`); n != 7 {
		t.Errorf("%d audit rows, 7 verbs were no dry runs", n)
	}
}

func TestUserHold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool).As("root")
	waiting := func(user int64) queue.Message {
		m := queuetest.Message()
		m.UserID = user
		d := queuetest.Put(t, q, m, true, "a@example.net")
		o := queuetest.Outcome(d, 0, queue.Deferred)
		o.RetryIn = time.Hour
		q.Settle(o)
		queuetest.Becomes(t, db, m.ID, "0 waiting")
		return m
	}
	mine, other := waiting(1), waiting(2)
	state := func(id queue.ID) State {
		list, err := a.List(queuetest.Context(t), Filter{IDs: []queue.ID{id}})
		if err != nil || len(list) != 1 {
			t.Fatalf("%v, %v", list, err)
		}
		return list[0].State
	}
	if n, err := a.HoldUser(queuetest.Context(t), 1, 0, "stolen"); err != nil || n != 1 || state(mine.ID) != StateHeld || state(other.ID) != StateWaiting {
		t.Fatalf("%d, %v, %s, %s", n, err, state(mine.ID), state(other.ID))
	}
	if list, err := a.UserHolds(queuetest.Context(t)); err != nil || len(list) != 1 || list[0].Reason != "stolen" || list[0].MadeBy != "root" {
		t.Fatalf("%+v, %v", list, err)
	}
	if n, err := a.ReleaseUser(queuetest.Context(t), 1); err != nil || n != 1 || state(mine.ID) != StateWaiting {
		t.Fatalf("%d, %v, %s", n, err, state(mine.ID))
	}
	if _, err := a.HoldUser(queuetest.Context(t), 1, 0, "again"); err != nil {
		t.Fatal(err)
	}
	if n, err := a.CancelUser(queuetest.Context(t), 1); err != nil || n != 1 || state(other.ID) != StateWaiting {
		t.Fatalf("%d, %v", n, err)
	}
	if list, err := a.UserHolds(queuetest.Context(t)); err != nil || len(list) != 0 {
		t.Fatalf("%+v, %v", list, err)
	}
	queuetest.Becomes(t, db, mine.ID, "")
	if n := queuetest.Count(t, db, `select count(*) from audit where action = 'queue hold' and object = 'user 1' and detail->>'reason' = 'stolen'`); n != 1 {
		t.Errorf("%d audit rows of the first hold", n)
	}
	if n := queuetest.Count(t, db, `select count(*) from audit where detail->>'user_hold' = 'ended'`); n != 2 {
		t.Errorf("%d audit rows of ends, want 2", n)
	}
}

func TestShapeAndFind(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool)
	first := queuetest.Message()
	queuetest.Put(t, q, first, true, "a@example.net", "b@example.net", "A@example.org")
	dotted := queuetest.Message()
	dotted.MessageID, dotted.Sender = "<dots@example.com>", queuetest.Address("carol@example.com")
	if _, err := q.Enqueue(queuetest.Context(t), dotted, []queue.Recipient{{Address: smtp.Address{Local: "foo..Bar", Domain: "example.org"}}}, content.New([]byte("x")), false); err != nil {
		t.Fatal(err)
	}
	second := queuetest.Message()
	d := queuetest.Put(t, q, second, true, "c@example.net")
	shape, err := a.Shape(queuetest.Context(t), 10)
	if err != nil || len(shape) != 2 || shape[0].Domain != "example.net" || shape[0].Total != 3 || shape[0].Ages[0] != 3 || len(shape[0].Ages) != 6 {
		t.Fatalf("%+v, %v", shape, err)
	}
	q.Settle(queuetest.Outcome(d, 0, queue.Delivered))
	queuetest.Becomes(t, db, second.ID, "")
	list, err := a.Summaries(queuetest.Context(t), []queue.ID{second.ID, queue.NewID(), first.ID})
	if err != nil || len(list) != 2 {
		t.Fatalf("%+v, %v", list, err)
	}
	if s := list[0]; s.ID != second.ID || s.Recipient != "c@example.net" || s.Recipients != 1 || s.Delivered != 1 || s.Sending+s.Waiting+s.Held+s.Failed+s.Cancelled > 0 {
		t.Errorf("%+v", s)
	}
	if s := list[1]; s.ID != first.ID || s.Recipient != "a@example.net" || s.Recipients != 3 || s.Sending != 3 || s.Delivered != 0 || s.Sender != "alice@example.com" {
		t.Errorf("%+v", s)
	}
	for what, want := range map[string][]queue.ID{
		"<m@example.com>": {second.ID, first.ID}, "m@example.com": {second.ID, first.ID},
		"foo..bar@example.org": {dotted.ID}, `"foo..bar"@example.org`: {dotted.ID}, `<"foo..bar"@Example.org>`: {dotted.ID},
		"c@example.net": {second.ID}, "a@EXAMPLE.org": {first.ID}, "<alice@example.com>": {second.ID, first.ID}, "": nil, "<>": nil, "nobody@example.net": nil,
	} {
		got, err := a.Find(queuetest.Context(t), what, 10)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %v, %v; want %v", what, got, err, want)
		}
	}
}

// The reply that a destination is shown with is the one that came last.
func TestShapeHasTheLastReply(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net", "b@example.net", "c@example.net")
	for n := range 2 {
		o := queuetest.Outcome(d, n, queue.Deferred)
		o.At, o.RetryIn = o.At.Add(time.Duration(n)*time.Second), time.Hour
		o.Reply = []smtp.Reply{smtp.Temporary(451, 4, 0, "zzz earlier"), smtp.Temporary(421, 4, 0, "later")}[n]
		q.Settle(o)
	}
	queuetest.Becomes(t, db, m.ID, "0 waiting;1 waiting;2 waiting owned")
	shape, err := NewAdmin(db.Pool).Shape(queuetest.Context(t), 10)
	if err != nil || len(shape) != 1 || shape[0].LastErr != "421 4.4.0 later" {
		t.Fatalf("%+v, %v", shape, err)
	}
}

// Mail is found by its user, and by no other.
func TestMailOfAUser(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool)
	m := queuetest.Message()
	d := queuetest.Put(t, q, m, true, "a@example.net")
	if n := queuetest.Count(t, db, `select user_id from recipient`); n != 1 {
		t.Fatalf("user %d", n)
	}
	q.Release(d, []int{0}, time.Hour)
	queuetest.Becomes(t, db, m.ID, "0 waiting")
	for user, want := range map[int64]int{1: 1, 2: 0} {
		if n, err := a.Hold(queuetest.Context(t), Filter{UserID: user}, true); err != nil || n != want {
			t.Errorf("user %d: %d recipients would be held, %v", user, n, err)
		}
		if counts, err := a.Counts(queuetest.Context(t), user); err != nil || counts[StateWaiting] != want {
			t.Errorf("user %d: %v, %v", user, counts, err)
		}
	}
}

// An address in a domain that is not ASCII is found as it came, in A-labels, as it is shown,
// and in U-labels, whichever of them the client wrote.
func TestFindInEverySpelling(t *testing.T) {
	t.Parallel()
	for _, written := range []string{"Bücher.example", "xn--BCHER-kva.example"} {
		db := pgtest.New(t)
		q := queuetest.Start(t, queuetest.Config(db))
		a := NewAdmin(db.Pool)
		m := queuetest.Message()
		m.Sender = queuetest.Address("Alice@" + written)
		d := queuetest.Put(t, q, m, true, "Bob@"+written, "carol@example.net")
		for _, typed := range []string{"bücher.example", "Bücher.Example", "xn--bcher-kva.example", "XN--bcher-kva.Example"} {
			for _, f := range []Filter{{Recipient: "bob@" + typed}, {Sender: "alice@" + typed}} {
				if list, err := a.List(queuetest.Context(t), f); err != nil || len(list) == 0 {
					t.Errorf("%s, written %s: %+v, %v", f.String(), written, list, err)
				}
			}
		}
		q.Settle(queuetest.Outcome(d, 0, queue.Delivered), queuetest.Outcome(d, 1, queue.Delivered))
		queuetest.Becomes(t, db, m.ID, "")
		for _, typed := range []string{"bücher.example", "Bücher.Example", "xn--bcher-kva.example", "XN--bcher-kva.Example"} {
			for _, what := range []string{"bob@" + typed, "<Alice@" + typed + ">"} {
				if ids, err := a.Find(queuetest.Context(t), what, 9); err != nil || !slices.Equal(ids, []queue.ID{m.ID}) {
					t.Errorf("%s, written %s: %v, %v", what, written, ids, err)
				}
			}
		}
		if list, err := a.List(queuetest.Context(t), Filter{Recipient: "bob@buecher.example"}); err != nil || len(list) != 0 {
			t.Errorf("%+v, %v", list, err)
		}
	}
}

// history lists a message's attempts, "0 delivered;1 deferred fenced".
func history(t testing.TB, db *pgtest.DB, id queue.ID) string {
	t.Helper()
	h, err := NewAdmin(db.Pool).Trace(queuetest.Context(t), id)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, a := range h.Events {
		s := fmt.Sprintf("%d %s", a.N, a.Result)
		if a.Fenced {
			s += " fenced"
		}
		list = append(list, s)
	}
	return strings.Join(list, ";")
}

// The end of a user's hold throws away what it held, and not what is set aside: nobody has
// looked at that yet. A filter that chooses it does.
func TestM8CancelOfAUserLeavesWhatIsSetAside(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := queuetest.Start(t, queuetest.Config(db))
	a := NewAdmin(db.Pool).As("root")
	ctx := queuetest.Context(t)
	bad, other := queuetest.Message(), queuetest.Message()
	for _, m := range []queue.Message{bad, other} {
		queuetest.Put(t, q, m, false, "a@example.net")
		queuetest.Becomes(t, db, m.ID, "0 waiting")
	}
	queuetest.Exec(t, db, `update recipient set held_at = now(), set_aside = 'its size is -1' where message_id = $1`, bad.ID)
	if _, err := a.HoldUser(ctx, bad.UserID, 0, "stolen"); err != nil {
		t.Fatal(err)
	}
	held := Filter{UserID: bad.UserID, State: StateHeld}
	if n, err := a.CancelHeld(ctx, held, true); err != nil || n != 1 {
		t.Errorf("%d would be cancelled, %v", n, err)
	}
	if n, err := a.CancelUser(ctx, bad.UserID); err != nil || n != 1 {
		t.Errorf("%d are cancelled, %v", n, err)
	}
	if list, err := a.List(ctx, Filter{}); err != nil || len(list) != 1 || list[0].ID != bad.ID {
		t.Errorf("left are %+v, %v", list, err)
	}
	if n, err := a.Cancel(ctx, held, false); err != nil || n != 1 {
		t.Errorf("%d are cancelled when they are asked for, %v", n, err)
	}
}
