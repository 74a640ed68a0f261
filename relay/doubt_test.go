package relay_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"postern/internal/rig"
	"postern/internal/smtptest"
)

// TestP12DoubtPolicies: what becomes of mail whose reply was lost, and of mail that a node had at the
// dot when it was killed, by each policy and under both gates.
func TestP12DoubtPolicies(t *testing.T) {
	t.Parallel()
	for _, gate := range []string{"local", "strict"} {
		t.Run(gate, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t, false)
			lossy, slow, rest := smtptest.Start(t, smtptest.Config{}), rig.NewSink(t, "", 0), rig.NewSink(t, "", 0)
			lossy.On(smtptest.PhaseDot, smtptest.Always(smtptest.Close()))
			r.RouteTo(rest, 5)
			for _, policy := range []string{"retry", "hold", "notice"} {
				for name, addr := range map[string]string{"lost": lossy.Addr(), "killed": slow.Addr()} {
					up := name + "-" + policy
					r.Postern("", "upstream", "add", up, "--host", addr, "--tls", "none", "--in-doubt", policy)
					r.Postern("", "route", "add", "--recipient-domain", up+".test", "--via", up)
				}
			}
			// The user's policy goes before that of the upstream.
			r.Postern("", "upstream", "add", "lost-user", "--host", lossy.Addr(), "--tls", "none", "--in-doubt", "notice")
			r.Postern("", "route", "add", "--recipient-domain", "lost-user.test", "--via", "lost-user")
			r.AddUser("careful@" + rig.Domain)
			r.Postern("", "user", "set", "careful@"+rig.Domain, "--in-doubt", "hold")
			node := r.Node(rig.NodeConfig{Name: "solo", Extra: fmt.Sprintf("[queue]\ngate = %q\n", gate)})
			ledger := rig.NewLedger()
			send := func(user string, to ...string) {
				t.Helper()
				for _, domain := range to {
					load := rig.Load{Rig: r, Ledger: ledger, Nodes: []*rig.Node{node}, Name: user, Conns: 1, Each: 1, Seed: rand.Uint64() >> 40,
						Shape: func(*rand.Rand) rig.Shape {
							return rig.Shape{From: "sender@" + rig.Domain, To: []string{"rcpt@" + domain + ".test"}, Size: 500}
						}}
					load.Start()
					load.Wait()
				}
			}
			has := func(what, sql string, args ...any) {
				t.Helper()
				await(t, what, func() bool {
					n, err := r.Count(t.Context(), `select count(*) from recipient where owner is null and `+sql, args...)
					return err == nil && n == 1
				})
			}
			const (
				waits = `doubt = 'retry' and domain = $1 and held_at is null and possible_duplicate and next_attempt_at > now() + interval '10 minutes'`
				held  = `doubt = 'hold' and domain = $1 and held_at is not null and possible_duplicate`
			)
			send("", "lost-retry", "lost-hold", "lost-notice")
			send("careful@"+rig.Domain, "lost-user")
			has("a retry", waits, "lost-retry.test")
			has("a hold", held, "lost-hold.test")
			has("the user's hold", held, "lost-user.test")
			if !rest.WaitReceived(1) || rest.Received()[0].Bounce == nil || !strings.Contains(rest.Received()[0].Bounce.Failed[0], "lost-notice") {
				t.Fatalf("no notice: %+v", rest.Received())
			}

			r.Postern("", "route", "add", "--recipient-domain", "lost-hold.test", "--via", "sink", "--replace") // the node follows meanwhile
			release := slow.Hold(rig.BeforeReply, "solo.test")
			send("", "killed-retry", "killed-hold", "killed-notice")
			if !slow.WaitHeld(rig.BeforeReply, "solo.test", 3) {
				t.Fatal("the upstream does not have the messages")
			}
			node.Kill()
			release()
			node.Start()
			node.Ready()
			if gate == "strict" {
				has("a retry after the kill", waits, "killed-retry.test")
				has("a hold after the kill", held, "killed-hold.test")
				if !rest.WaitReceived(2) {
					t.Fatal("no notice after the kill")
				}
			} else if !slow.WaitReceived(6) { // nobody knows that there was a dot
				t.Fatal("not tried again")
			}

			if said := r.Refused("upstream", "remove", "lost-hold"); !strings.Contains(said, "queue resolve") {
				t.Errorf("removed: %s", said)
			}
			if n := len(lossy.Transactions()); n != 4 {
				t.Errorf("%d transactions with the lossy server: a copy went out by itself", n)
			}
			if said := r.Postern("", "queue", "release", "--state", "held"); !strings.Contains(said, "left for 'postern queue resolve'") {
				t.Errorf("released: %s", said)
			}
			// It goes by another way, if a person says so.
			before := len(rest.Received())
			if said := r.Postern("", "queue", "resolve", "--domain", "lost-hold.test", "--resend"); said != "1 recipient is resolved\n" {
				t.Errorf("%q", said)
			}
			if !rest.WaitReceived(before + 1) {
				t.Fatal("not sent again")
			}
			r.Postern("", "queue", "resolve", "--all", "--delivered")
			r.Drain()
			if n, err := r.Count(t.Context(), `select count(*) from history where result = 'resolve'`); err != nil || n < 2 {
				t.Errorf("%d resolved, %v", n, err)
			}
			r.Postern("", "route", "add", "--recipient-domain", "lost-user.test", "--via", "sink", "--replace")
			r.Postern("", "upstream", "remove", "lost-user")
			if n := len(lossy.Transactions()); n != 4 {
				t.Errorf("%d transactions with the lossy server", n)
			}
			if want := map[string]int{"local": 6, "strict": 3}[gate]; len(slow.Received()) != want {
				t.Errorf("%d messages at the slow server, want %d", len(slow.Received()), want)
			}
			node.Terminate()
		})
	}
}
