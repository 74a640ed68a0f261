package relay_test

import (
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
	"postern/internal/smtptest"
)

// TestP12FirstUpstreamDies has the first of two upstreams die at each stage. What it did not take
// goes to the second in the same attempt; what it may have taken, and what the recipient is the
// reason for, does not. The trace says why.
func TestP12FirstUpstreamDies(t *testing.T) {
	t.Parallel()
	reply := func(text string) smtptest.Action { return smtptest.Reply(text) }
	leave := smtptest.Then(reply("421 4.3.2 closing"), smtptest.Close())
	const second, waits, doubt = "second", "waits", "in doubt"
	stages := []struct {
		name string // of the first upstream, and its domain
		at   smtptest.Phase
		does smtptest.Action
		want string
		says string // in the trace
	}{
		{"connect", "", smtptest.Normal(), second, `left \(host\) +connect `},
		{"greeting-closed", smtptest.PhaseBanner, smtptest.Close(), second, `left \(host\) +greeting-closed .* 451 4\.4\.2`},
		{"greeting-421", smtptest.PhaseBanner, leave, second, `left \(connection\) +greeting-421 .* 421 4\.3\.2 closing`},
		{"ehlo-closed", smtptest.PhaseHello, smtptest.Close(), second, `left \(host\) +ehlo-closed .* 451 4\.4\.2`},
		{"starttls", smtptest.PhaseStartTLS, smtptest.Normal(), second, `left \(host\) +starttls `},
		{"mail-421", smtptest.PhaseMail, leave, second, `left \(connection\) +mail-421 .* 421 4\.3\.2 closing`},
		{"mail-reset", smtptest.PhaseMail, smtptest.Reset(), second, `left \(connection\) +mail-reset .* after MAIL`},
		{"mail-login", smtptest.PhaseMail, reply("530 5.7.0 log in"), second, `left \(account\) +mail-login .* 530 5\.7\.0`},
		{"rcpt-host", smtptest.PhaseRcpt, reply("451 4.3.0 trouble here"), second, `left \(host\) +rcpt-host .* 451 4\.3\.0`},
		{"data-closed", smtptest.PhaseData, smtptest.Close(), second, `left \(connection\) +data-closed .* after DATA`},
		{"body-reset", smtptest.PhaseBody, smtptest.Reset(), second, `left \(connection\) +body-reset `},
		{"dot-login", smtptest.PhaseDot, reply("530 5.7.0 log in"), second, `left \(account\) +dot-login .* 530 5\.7\.0`},
		{"rcpt-grey", smtptest.PhaseRcpt, reply("450 4.2.0 greylisted"), waits, `deferred +rcpt-grey .* 450 4\.2\.0`},
		{"dot-451", smtptest.PhaseDot, reply("451 4.3.0 later"), waits, `deferred \(host\) +dot-451 .* 451 4\.3\.0`},
		{"dot-closed", smtptest.PhaseDot, smtptest.Close(), doubt, `deferred \(connection\), outcome unknown +dot-closed `},
		{"dot-reset", smtptest.PhaseDot, smtptest.Reset(), doubt, `deferred \(connection\), outcome unknown +dot-reset `},
	}
	r, sink := rig.New(t, false), rig.NewSink(t, "", 0)
	r.Postern("", "upstream", "add", "second", "--host", sink.Addr(), "--tls", "none")
	r.Postern("", "route", "add", "--via", "second")
	firsts := make([]*smtptest.Server, len(stages))
	for i, stage := range stages {
		firsts[i] = smtptest.Start(t, smtptest.Config{})
		tls := "none"
		switch stage.at {
		case "":
			firsts[i].Close()
		case smtptest.PhaseStartTLS:
			tls = "require" // which it does not offer
		default:
			firsts[i].On(stage.at, smtptest.Always(stage.does))
		}
		r.Postern("", "upstream", "add", stage.name, "--host", firsts[i].Addr(), "--tls", tls)
		r.Postern("", "route", "add", "--recipient-domain", stage.name+".test", "--via", stage.name+",second")
	}
	node := r.Node(rig.NodeConfig{Name: "solo"})
	c := dial(t, r, node)
	want(t, c.Login(rig.User, rig.Password))
	send := func(to string) (accepted time.Time) {
		want(t, openDataTo(c, rig.User, to))
		want(t, c.Say("dot", 250, "From: "+rig.User+"\r\n\r\ntext\r\n."))
		return time.Now()
	}
	at := func(to string) (list []time.Time) {
		for _, m := range sink.Received() {
			if slices.Contains(m.To, to) {
				list = append(list, m.At)
			}
		}
		return list
	}
	recorded := func(domain, result, upstream string) bool {
		return count(t, r, `select count(*) from history where domain = $1 and result = $2 and upstream = $3`, domain, result, upstream) > 0
	}
	const control = "rcpt@second.test"
	for range 2 { // the first one warms up
		accepted := send(control)
		await(t, "the control to arrive", func() bool { return recorded("second.test", "delivered", "second") })
		list := at(control)
		t.Logf("%-16s to the second alone: %v", "control", list[len(list)-1].Sub(accepted).Round(100*time.Microsecond))
	}
	for _, stage := range stages {
		to := "rcpt@" + stage.name + ".test"
		accepted := send(to)
		if stage.want == second {
			await(t, stage.name+" to go to the second", func() bool { return recorded(stage.name+".test", "delivered", "second") })
			t.Logf("%-16s to the second in %v", stage.name, at(to)[0].Sub(accepted).Round(100*time.Microsecond))
		} else {
			await(t, stage.name+" to wait", func() bool { return recorded(stage.name+".test", "deferred", stage.name) })
		}
		if trace := r.Postern("", "trace", to); !regexp.MustCompile(stage.says).MatchString(trace) {
			t.Errorf("%s: the trace does not say %q:\n%s", stage.name, stage.says, trace)
		}
		if stage.want == doubt && count(t, r, `select count(*) from recipient where stays_with = $1 and next_attempt_at > now() + interval '10 minutes'`, stage.name) != 1 {
			t.Errorf("%s: it does not stay with its way for a while", stage.name)
		}
	}
	for i, stage := range stages { // all are well again
		if stage.at != "" {
			firsts[i].On(stage.at, nil)
		}
	}
	r.Postern("", "queue", "retry", "--all")
	r.Drain()
	node.Terminate()
	for i, stage := range stages {
		there, here := len(at("rcpt@"+stage.name+".test")), len(firsts[i].Messages())
		if wantThere := map[bool]int{true: 1}[stage.want == second]; there != wantThere || here != 1-wantThere {
			t.Errorf("%s: %d copies at the second and %d at the first, want %d and %d", stage.name, there, here, wantThere, 1-wantThere)
		}
	}
}

// TestP12KillAtTheDot kills the node again and again while the first upstream of a route has a
// message and has not answered, and pauses that upstream: what is in doubt waits for it, and what
// is new goes to the second. Each try has a first upstream of its own.
func TestP12KillAtTheDot(t *testing.T) {
	t.Parallel()
	rounds := 3
	if longtest.Run() {
		rounds = 100
	}
	for _, gate := range []string{"local", "strict"} {
		t.Run(gate, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t, false)
			first, second := rig.NewSink(t, "", 0), rig.NewSink(t, "", 0)
			r.Postern("", "upstream", "add", "second", "--host", second.Addr(), "--tls", "none")
			ledger := rig.NewLedger()
			var node *rig.Node
			send := func() {
				load := rig.Load{Rig: r, Ledger: ledger, Nodes: []*rig.Node{node}, Conns: 1, Each: 1, Seed: rand.Uint64() >> 40, Shape: oneRecipient}
				load.Start()
				load.Wait()
			}
			name := func(round int) string { return fmt.Sprintf("first%d", round) }
			for round := range rounds {
				r.Postern("", "upstream", "add", name(round), "--host", first.Addr(), "--tls", "none")
				r.Postern("", "route", "add", "--via", name(round)+",second", "--replace")
				if node == nil {
					node = r.Node(rig.NodeConfig{Name: "solo", Extra: fmt.Sprintf("[queue]\ngate = %q\n", gate)})
				} else {
					node.Start()
					node.Ready()
				}
				release := first.Hold(rig.BeforeReply, "solo.test")
				send()
				if !first.WaitHeld(rig.BeforeReply, "solo.test", 1) {
					t.Fatal("the first upstream has no message")
				}
				node.Kill()
				release()
				r.Postern("", "upstream", "pause", name(round))
			}
			node.Start()
			node.Ready()
			await(t, "what is in doubt to wait for the first upstreams", func() bool {
				// Under the strict gate it waits for a quarter of an hour.
				count(t, r, `with due as (update recipient set next_attempt_at = now() where doubt is not null and owner is null
					and next_attempt_at > now() + interval '10 minutes' returning 1) select count(*) from due`)
				return count(t, r, `select count(*) from recipient where stays_with like 'first%' and owner is null and reply_text = 'upstream ' || stays_with || ' is paused'`) == rounds
			})
			send()
			await(t, "new mail to go to the second", func() bool { return len(second.Received()) == 1 })
			// A command for each would take longer than all else.
			count(t, r, `with resumed as (update upstream set paused_at = null returning 1) select count(*) from resumed`)
			await(t, "what is in doubt to leave", func() bool {
				r.Postern("", "queue", "retry", "--all")
				return count(t, r, `select count(*) from recipient`) == 0 // a node that does not know yet puts it off again
			})
			r.Drain()
			node.Terminate()
			tally := r.Evidence(ledger, first, second).Verify(t)
			if got := len(second.Received()); got != 1 || tally.Second != rounds {
				t.Errorf("the second upstream has %d messages, want the one that is new; %d second copies at the first, want %d", got, tally.Second, rounds)
			}
		})
	}
}

func oneRecipient(*rand.Rand) rig.Shape {
	return rig.Shape{From: "sender@" + rig.Domain, To: []string{"rcpt@dest.test"}, Size: 500}
}
