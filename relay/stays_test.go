package relay_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"postern/internal/rig"
)

// TestP12KillAtTheDot kills the node again and again while the first upstream of a route has a
// message and has not answered. Then the first one is paused: what is in doubt waits for it, and
// what is new goes to the second.
func TestP12KillAtTheDot(t *testing.T) {
	t.Parallel()
	rounds := 3
	if os.Getenv("POSTERN_LONG") == "1" {
		rounds = 100
	}
	for _, gate := range []string{"local", "strict"} {
		t.Run(gate, func(t *testing.T) {
			t.Parallel()
			r := rig.New(t, false)
			first, second := rig.NewSink(t, "", 0), rig.NewSink(t, "", 0)
			for name, sink := range map[string]*rig.Sink{"first": first, "second": second} {
				r.Postern("", "upstream", "add", name, "--host", sink.Addr(), "--tls", "none")
			}
			r.Postern("", "route", "add", "--via", "first")
			count := func(sql string, args ...any) int {
				t.Helper()
				n, err := r.Count(t.Context(), sql, args...)
				if err != nil {
					t.Fatal(err)
				}
				return n
			}
			count(`with more as (insert into route_upstream (route_id, rank, upstream) select id, 2, 'second' from route returning 1) select count(*) from more`)
			node := r.Node(rig.NodeConfig{Name: "solo", Extra: fmt.Sprintf("[queue]\ngate = %q\n", gate)})
			ledger := rig.NewLedger()
			send := func() {
				load := rig.Load{Rig: r, Ledger: ledger, Nodes: []*rig.Node{node}, Conns: 1, Each: 1, Seed: rand.Uint64() >> 40, Shape: oneRecipient}
				load.Start()
				load.Wait()
			}
			for range rounds {
				release := first.Hold(rig.BeforeReply, "solo.test")
				send()
				if !first.WaitHeld(rig.BeforeReply, "solo.test", 1) {
					t.Fatal("the first upstream has no message")
				}
				node.Kill()
				release()
				node.Start()
				node.Ready()
			}
			r.Postern("", "upstream", "pause", "first")
			until(t, "what is in doubt to wait for the first upstream", func() bool {
				return count(`select count(*) from recipient where stays_with = 'first' and owner is null and reply_text like 'upstream first is paused%'`) > 0
			})
			send()
			until(t, "new mail to go to the second", func() bool { return len(second.Received()) == 1 })
			r.Postern("", "upstream", "resume", "first")
			r.Drain()
			node.Terminate()
			tally := r.Evidence(ledger, first, second).Verify(t)
			// What was in doubt early may be in a later kill's hands again.
			if got := len(second.Received()); got != 1 || tally.Second < rounds {
				t.Errorf("the second upstream has %d messages, want the one that is new; %d second copies at the first, want %d or more", got, tally.Second, rounds)
			}
		})
	}
}

func oneRecipient(*rand.Rand) rig.Shape {
	return rig.Shape{From: "sender@" + rig.Domain, To: []string{"rcpt@dest.test"}, Size: 500}
}

// until waits for what the database or a sink will say.
func until(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(rig.Patience); !done(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited for %s", what)
		}
	}
}
