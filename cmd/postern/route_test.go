package main

import (
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
)

// TestRetryWaitingTwice: a node that has read the routes late lets the mail wait once more, after
// the command has made it due; it is due when the command ends.
func TestRetryWaitingTwice(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	exec := func(sql string) (rows int64) {
		t.Helper()
		tag, err := db.Pool.Exec(t.Context(), sql)
		if err != nil {
			t.Error(err)
		}
		return tag.RowsAffected()
	}
	exec(`insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
		values ('01890000-0000-7000-8000-000000000001', 1, 1, 'alice', 'example.com', 1, '', false, '', '', '', now(), '', '', '', '', 'a', 1)`)
	exec(`insert into recipient (message_id, n, user_id, next_attempt_at, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt, waits_for, reply_code, reply_enhanced, reply_text)
		values ('01890000-0000-7000-8000-000000000001', 0, 1, now() + interval '1 hour', now() + interval '5 days', 1, 0, 'example.net', 'bob', 'example.net', '', '',
		'route', 451, '4.4.4', 'no route is known for this recipient')`)
	node := make(chan bool)
	go func() { // with a table from before
		defer close(node)
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if exec(`update recipient set next_attempt_at = now() + interval '1 hour' where next_attempt_at <= now()`) > 0 {
				return
			}
		}
	}()
	var out strings.Builder
	status := run(t.Context(), []string{"route", "add", "--via", "mx"}, []string{"POSTERN_DATABASE_URL=" + db.URL}, nil, &out, &out)
	<-node
	if status != exitDone || strings.Count(out.String(), "1 recipient that waited for a route is due now") != 1 {
		t.Errorf("status %d: %s", status, &out)
	}
	var due bool
	if err := db.Pool.QueryRow(t.Context(), `select next_attempt_at <= now() from recipient`).Scan(&due); err != nil || !due {
		t.Errorf("due: %v, %v", due, err)
	}
}
