package node

import (
	"testing"

	"postern/internal/logtest"
	"postern/internal/pgtest"
	"postern/relay/upstream"
)

// A node says once that it cannot open the password of an upstream, and once that it can again.
func TestClosedSecretIsTold(t *testing.T) {
	t.Parallel()
	db, log := pgtest.New(t), &logtest.Lines{}
	s := &secrets{node: &Node{Setup: Setup{Log: log.Logger()}}, store: upstream.NewStore(db.Pool, nil)}
	const cannot, again = "upstream cannot be used by this node", "upstream can be used by this node again"
	for _, step := range []struct {
		sql           string
		cannot, again int
	}{
		{`insert into upstream (name, host, port, tls, username, password) values ('out', 'smtp.example', 587, 'require', 'relay', 'sealed')`, 1, 0},
		{`insert into upstream (name, host, port, tls) values ('open', 'smtp.example', 25, 'none')`, 1, 0},
		{`update upstream set username = '', password = null where name = 'out'`, 1, 1},
		{`update upstream set username = 'relay', password = 'sealed', tls = 'require'`, 3, 1},
	} {
		if _, err := db.Pool.Exec(t.Context(), step.sql); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if _, err := s.look(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if log.Count(cannot) != step.cannot || log.Count(again) != step.again {
			t.Errorf("after %s: %s", step.sql, log)
		}
	}
}
