package relay_test

import (
	"testing"
	"time"

	"postern/internal/rig"
)

// old is history of an hour and more ago, of which the first hundred messages are held;
// and what else is kept for a time.
const old = `
with new as materialized (select g, (lpad(to_hex((extract(epoch from now() - interval '2 hours') * 1000)::bigint), 12, '0')
		|| '70008000000000' || lpad(to_hex(g), 6, '0'))::uuid as id from generate_series(1, 5000) g),
m as (insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
	select id, 1, 1, 'a', 'example.com', 1, '', false, '', '', '', now() - interval '2 hours', '', '', '', '', 'a', 1 from new),
t as (insert into history (message_id, n, at, epoch, result) select id, 0, now() - interval '2 hours', 1, 'deferred' from new),
r as (insert into recipient (message_id, n, user_id, held_at, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
	select id, 0, 1, now(), now(), 0, 0, 'x', 'x', 'x', '', '' from new where g <= 100),
u as (insert into audit (at, actor, action, object) select now() - n * interval '1 hour', 'root', 'test', 'x' from generate_series(1, 100) n),
c as (insert into correspondent (user_id, recipient, seen_on) select 1, sha256(n::text::bytea), current_date - n from generate_series(1, 60) n returning 1)
select count(*) from c`

// TestRetentionOfNodes: two nodes delete what is older than they are told to keep it,
// one of them is killed meanwhile, and what must stay is there at the end.
func TestRetentionOfNodes(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	count(t, r, old)
	const keep = "[queue]\nhistory = \"1h\"\n[retention]\naudit = \"2d\"\ncorrespondents = \"10d\"\n"
	a, b := r.Node(rig.NodeConfig{Name: "a", Extra: keep}), r.Node(rig.NodeConfig{Name: "b", Extra: keep})
	a.Ready()
	b.Ready()
	const messages = `select count(*) from message`
	await(t, "some history is deleted", func() bool { return count(t, r, messages) < 5000 })
	a.Kill()
	left := count(t, r, messages)
	a.Start()
	await(t, "all is deleted that may be", func() bool {
		return count(t, r, messages) == 100 && count(t, r, `select count(*) from audit where action = 'test'`) == 47 &&
			count(t, r, `select count(*) from correspondent where seen_on < current_date - 40`) == 0
	})
	if n := count(t, r, `select count(*) from correspondent where seen_on > current_date - 40`); n < 38 { // a day may have begun
		t.Errorf("%d correspondents are left", n)
	}
	t.Logf("%d messages were left when a node was killed", left)
	if n := count(t, r, `select count(*) from message m join history a on a.message_id = m.id join recipient r on r.message_id = m.id`); n != 100 {
		t.Errorf("%d held messages have their history, want all 100", n)
	}
	if n := count(t, r, `select count(*) from history`); n != 100 {
		t.Errorf("%d attempts are left", n)
	}
}

// count is the number that a query gives.
func count(t *testing.T, r *rig.Rig, sql string, args ...any) int {
	t.Helper()
	n, err := r.Count(t.Context(), sql, args...)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// await polls what nodes bring about.
func await(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(rig.Patience); time.Now().Before(end); <-tick.C {
		if done() {
			return
		}
	}
	t.Fatalf("did not come about: %s", what)
}
