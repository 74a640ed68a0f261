package quota

import (
	"testing"

	"postern/internal/pgtest"
)

// The shell shows what Enter counts.
func TestOpenSessions(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s, _ := newTestSessions(t, db)
	dead, epoch := newTestSessions(t, db)
	limit := sessions(3, User)
	enter(t, s, under(1, limit), "")
	enter(t, s, under(1, limit), "")
	enter(t, dead, under(2, limit), "")
	shown := func(credential int64, byUser, byCredential int64) Usage {
		t.Helper()
		limits := under(credential, limit, sessions(9, Credential)).limits
		used, err := ReadUsage(t.Context(), db.Pool, limits)
		user, _ := used.Of(limits[0])
		mine, _ := used.Of(limits[1])
		if err != nil || user != byUser || mine != byCredential {
			t.Fatalf("%v, %v", used, err)
		}
		return used
	}
	if over := shown(1, 3, 2).OneMore(under(1, limit).limits); over == nil || over.Scope != User {
		t.Errorf("%+v", over)
	}
	shown(2, 3, 1)
	exec(t, db, `update node set reaped_at = now() where epoch = $1`, epoch)
	used := shown(1, 2, 2)
	if over := used.OneMore(under(1, limit).limits); over != nil {
		t.Errorf("with a dead node: %+v", over)
	}
	shown(2, 2, 0)
	if over := used.OneMore(nil); over != nil {
		t.Errorf("without a limit: %+v", over)
	}
}
