package relay_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

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
			and next_attempt_at > now() + interval '30 minutes' and reply_text like 'waits for upstream out, left alone until %554 5.7.1 not you%'`) == 1
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
