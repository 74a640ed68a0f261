package relay_test

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"postern/internal/rig"
	"postern/internal/smtptest"
)

// TestNodesFollowTheShell changes a route, a budget and the password of an upstream while mail
// of two nodes waits for that: all of it goes by itself, with NOTIFY and without.
func TestNodesFollowTheShell(t *testing.T) {
	t.Parallel()
	for _, notify := range []bool{true, false} {
		t.Run(fmt.Sprintf("notify %v", notify), func(t *testing.T) {
			t.Parallel()
			testNodesFollowTheShell(t, notify)
		})
	}
}

func testNodesFollowTheShell(t *testing.T, notify bool) {
	r := rig.New(t, false)
	ca := smtptest.NewCA(t)
	server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Users: map[string]string{"relay": "right"}})
	caFile := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(caFile, ca.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	r.Postern("wrong", "upstream", "add", "out", "--host", server.Addr(), "--tls", "require", "--ca-file", caFile, "--username", "relay", "--password-stdin")
	var nodes []*rig.Node
	for _, name := range []string{"a", "b"} {
		nodes = append(nodes, r.Node(rig.NodeConfig{Name: name, Extra: fmt.Sprintf("[queue]\nnotify = %v\n", notify)}))
	}
	sent := 0
	send := func() { // a message through each node
		for _, n := range nodes {
			load := rig.Load{Rig: r, Ledger: rig.NewLedger(), Nodes: []*rig.Node{n}, Conns: 1, Each: 1, Shape: oneRecipient}
			load.Start()
			load.Wait()
			sent++
		}
	}
	waits := func(as string) {
		t.Helper()
		await(t, "both messages to wait: "+as, func() bool {
			return count(t, r, `select count(*) from recipient where owner is null and `+as) == 2
		})
	}
	follows := func(what string, arrive bool, stdin string, args ...string) {
		t.Helper()
		began := time.Now()
		r.Postern(stdin, args...)
		done := time.Now()
		if arrive {
			server.WaitMessages(t, sent)
			t.Logf("%s: the command took %v, all mail had gone %v after its start", what, done.Sub(began).Round(time.Millisecond), time.Since(began).Round(time.Millisecond))
		}
	}

	send()
	waits(`reply_text like 'no route %'`)
	began := time.Now()
	follows("a route", false, "", "route", "add", "--via", "out")
	// Both know, by an attempt or by the breaker that the other one has opened.
	waits(`(reply_code = 535 or reply_text like '%"535 %')`)
	t.Logf("a route: both messages have been tried %v after the command's start", time.Since(began).Round(time.Millisecond))
	follows("a password", true, "right", "upstream", "set", "out", "--password-stdin")

	r.Postern("", "upstream", "set", "out", "--budget", "messages 1/d")
	await(t, "mail to wait for the budget", func() bool { // as soon as the nodes know of it
		send()
		return count(t, r, `select count(*) from recipient where owner is null and waits_for = 'budget out'`) > 0
	})
	follows("a budget", true, "", "upstream", "set", "out", "--budget", "none")

	r.Postern("", "upstream", "pause", "out")
	await(t, "mail to wait for the end of the pause", func() bool {
		send()
		return count(t, r, `select count(*) from recipient where owner is null and reply_text = 'upstream out is paused'`) > 0
	})
	follows("a pause", true, "", "upstream", "resume", "out")
	r.Drain()
}
