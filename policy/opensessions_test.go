package policy

import (
	"maps"
	"testing"

	"postern/auth"
	"postern/internal/pgtest"
)

// What is shown is what Enter counts.
func TestOpenSessions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, _ := newTestSessions(t, db)
	dead, epoch := newTestSessions(t, db)
	limit := sessions(3, auth.FromUser)
	enter(t, s, under(1, limit), "")
	enter(t, s, under(1, limit), "")
	enter(t, dead, under(2, limit), "")
	open, err := OpenSessions(t.Context(), db.Pool, 7)
	if err != nil || !maps.Equal(open, map[int64]int64{1: 2, 2: 1}) {
		t.Fatalf("%v, %v", open, err)
	}
	if v := OneMore(under(1, limit), 3, 2); v.Allowed || v.Rule != "sessions user" {
		t.Errorf("%+v", v)
	}
	exec(t, db, `update node set reaped_at = now() where epoch = $1`, epoch)
	open, err = OpenSessions(t.Context(), db.Pool, 7)
	if err != nil || !maps.Equal(open, map[int64]int64{1: 2}) {
		t.Fatalf("with a dead node: %v, %v", open, err)
	}
	if v := OneMore(under(1, limit), 2, 2); !v.Allowed || v.Rule != "sessions user" {
		t.Errorf("%+v", v)
	}
	if v := OneMore(under(1), 2, 2); !v.Allowed || v.Rule != "" {
		t.Errorf("without a limit: %+v", v)
	}
}
