package desk

import (
	"slices"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/queuetest"
)

// share is what an overview says of one state, over all ages.
func share(o Overview, state State) (recipients int64, oldest time.Duration) {
	for _, s := range o.Shares {
		if s.State == state {
			recipients, oldest = recipients+s.Recipients, max(oldest, s.Oldest)
		}
	}
	return recipients, oldest
}

func TestOverview(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	r := NewReader(db.Pool)
	o, err := r.Overview(queuetest.Context(t))
	if err != nil || len(o.Shares) > 0 || o.Overdue != 0 || o.Nodes != 0 || o.Holds != 0 {
		t.Fatalf("an empty queue: %+v, %v", o, err)
	}
	q := queuetest.Start(t, queuetest.Config(db))
	owned := queuetest.Message()
	queuetest.Put(t, q, owned, true, "a@example.net", "b@example.net", "c@example.net")
	waiting := queuetest.Message()
	queuetest.Put(t, q, waiting, false, "d@example.net", "e@example.net")
	queuetest.Becomes(t, db, waiting.ID, "0 waiting;1 waiting")
	if _, err := NewAdmin(db.Pool).Hold(queuetest.Context(t), Filter{Recipient: "e@example.net"}, false); err != nil {
		t.Fatal(err)
	}
	queuetest.Exec(t, db, `update recipient set accepted_at = now() - interval '2 days', next_attempt_at = now() - interval '10 minutes' where message_id = $1`, waiting.ID)
	queuetest.Exec(t, db, `update recipient set accepted_at = now() - interval '20 minutes' where message_id = $1 and n = 0`, owned.ID)
	queuetest.Exec(t, db, `insert into hold (user_id, credential_id, reason, made_by) values (7, 0, 'test', 'test')`)

	if o, err = r.Overview(queuetest.Context(t)); err != nil {
		t.Fatal(err)
	}
	for state, want := range map[State]int64{StateWaiting: 1, StateHeld: 1, StateSending: 3, StateFailed: 0} {
		if n, _ := share(o, state); n != want {
			t.Errorf("%s: %d recipients, want %d", state, n, want)
		}
	}
	if _, oldest := share(o, StateWaiting); oldest < 48*time.Hour || oldest > 49*time.Hour {
		t.Errorf("the oldest that waits is %v old", oldest)
	}
	young := slices.IndexFunc(o.Shares, func(s Share) bool { return s.State == StateSending && s.Step == 0 && s.Recipients == 2 })
	older := slices.IndexFunc(o.Shares, func(s Share) bool { return s.State == StateSending && s.Step == 2 && s.Recipients == 1 })
	old := slices.IndexFunc(o.Shares, func(s Share) bool { return s.State == StateWaiting && s.Step == len(AgeSteps()) })
	if young < 0 || older < 0 || old < 0 {
		t.Errorf("shares %+v", o.Shares)
	}
	if o.Overdue < 10*time.Minute || o.Overdue > 11*time.Minute || o.Nodes != 1 || o.Holds != 1 {
		t.Errorf("%+v", o)
	}
	if err := r.Ping(queuetest.Context(t)); err != nil {
		t.Error(err)
	}
}
