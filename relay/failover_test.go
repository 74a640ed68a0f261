package relay_test

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"

	"postern/internal/rig"
)

// promotedAfter is how long after its primary's end a standby is promoted.
const promotedAfter = 1500 * time.Millisecond

// failovers is how many a test has, and whether it judges what they cost in time:
// 'make failover' wants to know, and a machine that is busy with other tests cannot say.
func failovers() (rounds int, timed bool) {
	if os.Getenv("POSTERN_FAILOVER") == "1" {
		return 10, true
	}
	return 1, false
}

// TestR1SilentPrimary has a primary fall silent under load, and its synchronous standby
// promoted. What was being committed is asked after on the new primary as soon as the node
// knows of it, and not when the clients' patience ends.
func TestR1SilentPrimary(t *testing.T) {
	t.Parallel()
	if doubts := failOver(t, (*rig.Pair).Pause, 15*time.Second); doubts == 0 {
		t.Error("no commit was in doubt: this run proves nothing")
	}
}

// TestR1KilledPrimary is the same with a primary that dies, and all its connections with it.
func TestR1KilledPrimary(t *testing.T) {
	t.Parallel()
	doubts := failOver(t, (*rig.Pair).Kill, time.Second)
	t.Logf("%d commits were in doubt", doubts)
}

// failOver ends primaries under load, each by end, and promotes their standbys. Nothing is
// lost, nothing is sent twice, and nothing is refused because nobody asked after it. It
// returns how many commits were in doubt.
func failOver(t *testing.T, end func(*rig.Pair), within time.Duration) (doubts int) {
	t.Helper()
	r, pair := rig.NewPair(t)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	a, b := r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})
	load := newLoad(t, r, a, b)
	load.Start()
	rounds, timed := failovers()
	for n := range rounds {
		awaitMore(t, load.Ledger, 20)
		<-moment()
		end(pair)
		<-time.After(promotedAfter)
		pair.Promote()
		promoted := time.Now()
		awaitMore(t, load.Ledger, 1)
		took := time.Since(promoted)
		t.Logf("round %d: the first message was accepted %.1f s after the promotion", n+1, took.Seconds())
		if timed && took > within {
			t.Errorf("round %d: the first message was accepted after %v, want %v at most", n+1, took, within)
		}
		pair.Kill() // it would go on as if nothing had been
		if n+1 < rounds {
			pair.Renew()
		}
	}
	awaitMore(t, load.Ledger, 20)
	tally := settle(t, r, load, sink, a, b)
	wantCalm(t, tally)
	if n, err := r.Count(t.Context(), `select count(*) from message where voided_at is not null`); err != nil || n > 0 {
		t.Errorf("%d messages were refused though they might have been asked after, %v", n, err)
	}
	return a.Said("the fate of a commit is unknown") + b.Said("the fate of a commit is unknown")
}

// TestR6ForgottenDeliveries has a failover to a standby that is behind: what was delivered
// in the last moments is sent again, for the database has forgotten it. Each second copy is
// flagged. (What was accepted in those moments is lost, and notices that were sent are sent
// again, as the documentation says.)
func TestR6ForgottenDeliveries(t *testing.T) {
	t.Parallel()
	r, pair := rig.NewPair(t)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo"})
	load := newLoad(t, r, node)
	// Notices would wait before they are claimed, and what has waited may not be flagged
	// (docs/operate.md): none are made.
	load.Shape = func(random *rand.Rand) rig.Shape {
		shape := smallMail(random)
		for i, to := range shape.To {
			shape.To[i] = strings.TrimPrefix(to, rig.RefusedLocal)
		}
		return shape
	}
	load.Start()
	awaitMore(t, load.Ledger, 20)
	// Mail that is held now is accepted on both, and delivered on the primary alone.
	open := sink.Hold(rig.BeforeData, "solo.test")
	awaitMore(t, load.Ledger, 20)
	pair.Lag()
	delivered := func() int { return count(t, r, `select count(*) from history where result = 'delivered'`) }
	before := delivered()
	open()
	await(t, "what was held is delivered", func() bool { return delivered() > before+5 })
	awaitMore(t, load.Ledger, 30)
	pair.Kill()
	pair.Promote()
	awaitMore(t, load.Ledger, 20)
	load.Stop()
	t.Log(load.Ledger)
	r.Drain()
	node.Terminate()
	problems, tally := rig.Check(r.Evidence(load.Ledger, sink))
	t.Logf("%+v", tally)
	for _, problem := range problems {
		if !strings.HasPrefix(problem, "I1: ") && !strings.HasPrefix(problem, "I11: ") {
			t.Error(problem)
		}
	}
	if tally.Second == 0 {
		t.Error("nothing was sent twice: this run proves nothing")
	}
}
