package queue

import (
	"testing"

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
		{`insert into hold (user_id, reason, made_by) values (2, 'never written to', 'breaker')`, 1, 0},
		{`delete from hold where user_id = 2`, 1, 1},
		{`delete from hold`, 1, 2},
	} {
		exec(t, db, step.sql)
		if err := h.look(ctxOf(t)); err != nil || len(made) != step.made || len(ended) != step.ended {
			t.Fatalf("after %s: made %+v, ended %+v, %v", step.sql, made, ended, err)
		}
	}
	if made[0].UserID != 2 || made[0].MadeBy != "breaker" || ended[0].UserID != 2 || ended[1].UserID != 1 {
		t.Errorf("made %+v, ended %+v", made, ended)
	}
}
