package relay_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
	"postern/internal/smtptest"
)

// TestBreakerOverNodes has one node find an upstream that refuses everybody: the other one lets
// its mail wait without a connection. The node that probes is killed meanwhile: the other one
// probes, and the mail of both goes by itself.
func TestBreakerOverNodes(t *testing.T) {
	t.Parallel()
	for _, notify := range []bool{true, false} {
		t.Run(fmt.Sprintf("notify %v", notify), func(t *testing.T) {
			t.Parallel()
			testBreakerOverNodes(t, notify)
		})
	}
}

func testBreakerOverNodes(t *testing.T, notify bool) {
	r := rig.New(t, false)
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Reply("554 5.7.1 not you")))
	r.Postern("", "upstream", "add", "out", "--host", server.Addr(), "--tls", "none")
	r.Postern("", "route", "add", "--via", "out")
	extra := fmt.Sprintf("[queue]\nnotify = %v\n", notify)
	nodes := map[string]*rig.Node{}
	for _, name := range []string{"a", "b"} {
		nodes[name] = r.Node(rig.NodeConfig{Name: name, Extra: extra})
	}
	send := func(n *rig.Node) {
		load := rig.Load{Rig: r, Ledger: rig.NewLedger(), Nodes: []*rig.Node{n}, Conns: 1, Each: 1, Shape: oneRecipient}
		load.Start()
		load.Wait()
	}
	opened := func(n *rig.Node, open int) {
		t.Helper()
		awaitPage(t, n.Admin(), "/metrics", "the state of the breaker", func(_ int, body string) bool {
			return strings.Contains(body, fmt.Sprintf("\npostern_upstream_open{upstream=\"out\"} %d\n", open))
		})
	}
	send(nodes["a"])
	await(t, "the breaker to open", func() bool { return count(t, r, `select count(*) from upstream_breaker where opened_by = 'a'`) == 1 })
	began := time.Now()
	opened(nodes["b"], 1)
	t.Logf("the other node follows after %v", time.Since(began))
	conns := server.Conns()
	send(nodes["b"])
	await(t, "both messages to wait", func() bool {
		return count(t, r, `select count(*) from recipient where owner is null and waits_for = 'upstream out' and attempts = 0
			and next_attempt_at > now() + interval '30 minutes' and reply_text like 'waits for upstream out, not used until %554 5.7.1 not you%'`) == 1
	})
	if n := server.Conns(); n != conns {
		t.Errorf("%d connections for mail that waits", n-conns)
	}

	server.On(smtptest.PhaseBanner, smtptest.Always(smtptest.Stall()))
	r.Postern("", "upstream", "resume", "out")
	await(t, "a probe", func() bool {
		return server.Conns() > conns && count(t, r, `select count(*) from upstream_breaker where lease_until > now()`) == 1
	})
	dead, other := "a", "b"
	if count(t, r, `select count(*) from upstream_breaker where holder = 'b'`) == 1 {
		dead, other = other, dead
	}
	nodes[dead].Kill()
	server.On(smtptest.PhaseBanner, nil)
	count(t, r, `with ended as (update upstream_breaker set lease_until = now(), next_probe_at = now() returning 1) select count(*) from ended`)
	opened(nodes[other], 0)
	if n := count(t, r, fmt.Sprintf(`select count(*) from upstream_breaker where closed_by = '%s' and by_probe`, other)); n != 1 {
		t.Errorf("node %s has not closed it", other)
	}
	server.WaitMessages(t, 2)
	r.Drain()
}

// waiting is mail of the user $1, one recipient a message, at dest.test.
const waiting = `
with new as materialized (select (lpad(to_hex((extract(epoch from now()) * 1000)::bigint), 12, '0') || '70008000000000' || lpad(to_hex(g), 6, '0'))::uuid as id
		from generate_series(1, $2::int) g),
m as (insert into message (id, user_id, credential_id, sender_local, sender_domain, size, body_type, utf8, ret, envid, header_id, accepted_at,
		client_addr, client_hello, listener, tls, node, recipients)
	select id, $1, 1, 'a', 'load.test', 5, '', false, '', '', '', now(), '', '', '', '', 'a', 1 from new),
b as (insert into body (message_id, n, chunk) select id, 0, E'x\r\n\r\n'::bytea from new),
r as (insert into recipient (message_id, n, user_id, expires_at, tell, notify, domain_key, local, domain, orcpt_type, orcpt)
	select id, 0, $1, now() + interval '5 days', 1, 0, 'dest.test', 'x', 'dest.test', '', '' from new returning 1)
select count(*) from r`

// TestBreakerManyWait has very much mail due for an upstream that cannot be reached. It is put off
// once, for an hour or two, and another user's mail to the same domain goes meanwhile. With
// POSTERN_LONG=1 it is 100,000 messages, and writes are counted afterwards.
func TestBreakerManyWait(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	r.AddUser("many@" + rig.Domain)
	r.Postern("", "upstream", "add", "out", "--host", "127.0.0.1:1", "--tls", "none")
	r.Postern("", "route", "add", "--user", "many@"+rig.Domain, "--via", "out", "--before", "1")
	n, long := 2000, longtest.Run()
	if long {
		n = 100_000
	}
	user := count(t, r, `select id from app_user where name = 'many@load.test'`)
	if made, err := r.Count(t.Context(), waiting, user, n); made != n || err != nil {
		t.Fatal(made, err)
	}
	node := r.Node(rig.NodeConfig{Name: "solo"})
	await(t, "the breaker to open", func() bool {
		return count(t, r, `select count(*) from upstream_breaker where opened_at is not null`) == 1
	})
	began := time.Now()
	load := rig.Load{Rig: r, Ledger: rig.NewLedger(), Nodes: []*rig.Node{node}, Conns: 1, Each: 1, Shape: oneRecipient}
	load.Start()
	await(t, "the other user's mail", func() bool { return len(sink.Received()) == 1 })
	t.Logf("the other user's mail took %v", time.Since(began))
	load.Wait()
	await(t, "all to be put off", func() bool {
		return count(t, r, `select count(*) from recipient where attempts = 0 and (owner is not null or next_attempt_at < now() + interval '50 minutes')`) == 0
	})
	t.Logf("all is put off after %v", time.Since(began))
	if long {
		const writes = `select n_tup_upd + n_tup_ins + n_tup_del from pg_stat_user_tables where relname = 'recipient'`
		time.Sleep(10 * time.Second) // so that what was written is counted
		before := count(t, r, writes)
		time.Sleep(time.Minute)
		t.Logf("%d rows are written in a minute", count(t, r, writes)-before)
	}
}

// TestBreakerDoesNotFlap has an upstream take MAIL and RCPT, and refuse everything at the final dot,
// while 1,000 messages of two users wait: each probe of the nodes shows it one message. When it
// takes mail again, all goes by itself.
func TestBreakerDoesNotFlap(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseDot, smtptest.Always(smtptest.Reply("554 5.2.0 quota")))
	r.Postern("", "upstream", "add", "out", "--host", server.Addr(), "--tls", "none")
	r.Postern("", "upstream", "reply", "add", "out", "--code", "554", "--enhanced", "5.2.0", "--result", "later", "--scope", "account")
	r.Postern("", "route", "add", "--via", "out")
	const messages = 1000
	for _, user := range []string{"one@" + rig.Domain, "two@" + rig.Domain} {
		r.AddUser(user)
		id := count(t, r, fmt.Sprintf(`select id from app_user where name = '%s'`, user))
		if made, err := r.Count(t.Context(), waiting, id, messages/2); made != messages/2 || err != nil {
			t.Fatal(made, err)
		}
	}
	count(t, r, `with mixed as (update recipient set next_attempt_at = now() - random() * interval '1 minute' returning 1) select count(*) from mixed`)
	r.Node(rig.NodeConfig{Name: "a"})
	r.Node(rig.NodeConfig{Name: "b"})
	dots := func() int { return server.Reached(smtptest.PhaseDot) }
	await(t, "all to wait", func() bool {
		return count(t, r, `select count(*) from recipient where owner is null and waits_for = 'upstream out' and next_attempt_at > now() + interval '5 minutes'`) > messages-200
	})
	t.Logf("%d of %d are refused before it opens", dots(), messages)
	await(t, "the others to wait", func() bool {
		return count(t, r, `select count(*) from recipient where owner is not null or next_attempt_at < now() + interval '5 seconds'`) == 0
	})
	before, probes := dots(), 0
	const writes = `select sum(attempts) from recipient`
	attempts := count(t, r, writes)
	for ; probes < 4; probes++ {
		count(t, r, `select hurry_breaker('out')`)
		await(t, "the probe to fail", func() bool { return count(t, r, `select failures from upstream_breaker`) == 1 })
	}
	if n, more := dots()-before, count(t, r, writes)-attempts; n < probes || n > 2*probes || more > 2*probes {
		t.Errorf("%d messages are sent for %d probes, with %d attempts", n, probes, more)
	}
	server.On(smtptest.PhaseDot, nil)
	count(t, r, `select hurry_breaker('out')`)
	began := time.Now()
	server.WaitMessages(t, messages)
	t.Logf("all is sent after %v", time.Since(began))
	if n := count(t, r, `select opening from upstream_breaker where opened_at is null`); n != 1 {
		t.Errorf("it opened %d times", n)
	}
}
