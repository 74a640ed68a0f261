package queue

import (
	"testing"
	"time"

	"postern/internal/pgtest"
)

// Holds that are made and ended are told of, but not those that were there before.
func TestHoldsAreTold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	cfg := handConfig(db, "a")
	var made, ended []UserHold
	cfg.HoldMade = func(h UserHold) { made = append(made, h) }
	cfg.HoldEnded = func(h UserHold) { ended = append(ended, h) }
	h := newHolds(New(cfg))
	for _, step := range []struct {
		sql         string
		made, ended int
	}{
		{`insert into hold (user_id, reason, made_by) values (1, 'before', 'root')`, 0, 0},
		{`insert into hold (user_id, reason, made_by) values (2, 'never written to', 'anomaly')`, 1, 0},
		{`delete from hold where user_id = 2`, 1, 1},
		{`delete from hold`, 1, 2},
	} {
		exec(t, db, step.sql)
		if err := h.look(ctxOf(t)); err != nil || len(made) != step.made || len(ended) != step.ended {
			t.Fatalf("after %s: made %+v, ended %+v, %v", step.sql, made, ended, err)
		}
	}
	if made[0].UserID != 2 || made[0].MadeBy != "anomaly" || ended[0].UserID != 2 || ended[1].UserID != 1 {
		t.Errorf("made %+v, ended %+v", made, ended)
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
	becomes(t, db, d.Message.ID, "0 waiting")
	exec(t, db, `insert into hold (user_id, reason, made_by, made_at) values (1, 'x', 'y', clock_timestamp() - interval '3 minutes')`)
	held := func() int { return count(t, db, `select count(*) from recipient where held_at is not null`) }
	eventually(t, "it is held", func() bool { return held() == 1 })
	// An admin's word about one message stands.
	released(t, db)
	still(q)
	if err := newHolds(q).look(ctxOf(t)); err != nil || held() != 0 {
		t.Errorf("%d are held after the release, %v", held(), err)
	}
}

// A hold catches up with the mail of its user, and of no other.
func TestHoldCatchesUpWithItsUser(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	q := start(t, calmConfig(db))
	m, d := put(t, q, true, "a@example.net")
	q.Release(d, []int{0}, time.Hour)
	becomes(t, db, m.ID, "0 waiting")
	still(q) // it would catch up with the holds too
	for i, want := range []int{0, 1} {
		user := int64(2 - i)
		exec(t, db, `insert into hold (user_id, reason, made_by) values ($1, '', '')`, user)
		exec(t, db, sqlCatchUpHolds, []int64{user})
		if n := count(t, db, `select count(*) from recipient where held_at is not null`); n != want {
			t.Errorf("user %d: the hold caught up with %d recipients", user, n)
		}
		if n := count(t, db, `select count(*) from history where result = 'hold'`); n != want {
			t.Errorf("user %d: the history has %d holds", user, n)
		}
		exec(t, db, `update recipient set held_at = null`)
		exec(t, db, `delete from hold`)
	}
}

// released lets all go that is held, as an operator does, and says how many recipients it was.
func released(t *testing.T, db *pgtest.DB) int {
	t.Helper()
	return count(t, db, `
with w as (update recipient set held_at = null, set_aside = null, next_attempt_at = now() where held_at is not null returning message_id, n, local, domain),
h as (insert into history (message_id, n, at, epoch, result, local, domain) select message_id, n, clock_timestamp(), 0, 'release', local, domain from w)
select count(*) from w`)
}
