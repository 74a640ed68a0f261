package check

import (
	"context"
	"strings"
	"testing"

	"postern/relay/upstream"
)

// A running node finds what its database and its files say, and tries nothing.
func TestRunning(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	p.admit(t)
	if err := upstream.NewStore(p.pool, nil).Add(t.Context(), upstream.Account{Name: "out", Host: "192.0.2.1", Port: 587, TLS: upstream.TLSRequire}); err != nil {
		t.Fatal(err)
	}
	p.sql(t, `insert into notice (message_id, about, user_id, again, kind, lost, lost_at) values (gen_random_uuid(), gen_random_uuid(), 1, false, 'failure', 'failed', now())`)
	found := Running(context.Background(), p.c.cfg, p.c.source, p.c.dialer, p.c.cfg.Database.URL)
	wantFinding(t, found, "queue.lost", "1")
	wantFinding(t, found, "route.none", "")
	for _, f := range found {
		switch area, _, _ := strings.Cut(f.ID, "."); {
		case area == "port" || area == "relay" || area == "admin" || area == "account" || area == "spf" || area == "check",
			strings.HasPrefix(f.ID, "upstream."):
			t.Errorf("%+v", f)
		}
	}
}
