package relay_test

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

// kills is how often a process is killed in one test: 300 undisturbed kills say
// that fewer than one in a hundred does harm, at 95% confidence.
func kills() int {
	if longtest.Run() {
		return 300
	}
	return 20
}

// smallMail is a load of messages, most of them small, to one to three recipients, a
// few of whom the upstream refuses.
func smallMail(random *rand.Rand) rig.Shape {
	shape := rig.Shape{From: fmt.Sprintf("sender%d@%s", random.IntN(50), rig.Domain), Size: 300 + random.IntN(8<<10)}
	switch {
	case random.IntN(20) == 0:
		shape.Size = 100 << 10
	case random.IntN(20) == 0: // these are stored another way
		shape.Size = 1<<20 + random.IntN(1<<20)
	}
	for n := range 1 + random.IntN(3) {
		name := "rcpt"
		if random.IntN(40) == 0 {
			name = rig.RefusedLocal + "body"
		}
		shape.To = append(shape.To, fmt.Sprintf("%s%d-%d@dest%d.test", name, n, random.IntN(1000), random.IntN(10)))
	}
	return shape
}

// newLoad is a load on nodes, under a seed that the log tells.
func newLoad(t *testing.T, r *rig.Rig, nodes ...*rig.Node) *rig.Load {
	t.Helper()
	seed := rand.Uint64() >> 40
	t.Logf("seed %d", seed)
	return &rig.Load{Rig: r, Ledger: rig.NewLedger(), Nodes: nodes, Conns: 6, Pace: 10 * time.Millisecond, Seed: seed, Shape: smallMail}
}

// moment is a random time after which to kill: sessions, commits and deliveries are
// under way then.
func moment() <-chan time.Time { return time.After(rand.N(500 * time.Millisecond)) }

// awaitMore waits until the relay has accepted n more messages.
func awaitMore(t *testing.T, l *rig.Ledger, n int) {
	t.Helper()
	if !l.WaitAccepted(l.Accepted() + n) {
		t.Fatalf("the relay does not accept mail: %s", l)
	}
}

// TestKillServer kills the server at random moments under load and starts it again
// immediately, and then asks all sides what they know.
func TestKillServer(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo"})
	load := newLoad(t, r, node)
	load.Start()
	for range kills() {
		awaitMore(t, load.Ledger, 10)
		<-moment()
		node.Kill()
		node.Start()
		node.Ready()
	}
	awaitMore(t, load.Ledger, 10)
	if tally := settle(t, r, load, sink, node); tally.Unknown+tally.Second == 0 {
		t.Error("no kill met a message under way: this run proves nothing")
	}
}

// settle ends the load, lets the relay deliver what it has, stops it in good order
// and compares the accounts of all sides.
func settle(t *testing.T, r *rig.Rig, load *rig.Load, sink *rig.Sink, nodes ...*rig.Node) rig.Tally {
	t.Helper()
	load.Stop()
	t.Log(load.Ledger)
	r.Drain()
	for _, node := range nodes {
		node.Terminate()
	}
	return r.Evidence(load.Ledger, sink).Verify(t)
}

// TestKillPostgres kills the database under load, by turns only its postmaster and
// all its processes, and starts it again immediately. The relay goes on meanwhile.
func TestKillPostgres(t *testing.T) {
	t.Parallel()
	r := rig.New(t, true)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo"})
	load := newLoad(t, r, node)
	load.Start()
	for n := range kills() {
		awaitMore(t, load.Ledger, 10)
		<-moment()
		r.KillPostgres(n%2 == 0)
		r.StartPostgres()
	}
	awaitMore(t, load.Ledger, 10)
	tally := settle(t, r, load, sink, node)
	t.Logf("%d commits were in doubt", node.Said("the fate of a commit is unknown"))
	wantCalm(t, tally)
}

// wantCalm judges a run in which no node died, whatever the database did: outcomes are
// kept until they are written, and what was accepted is in the queue.
func wantCalm(t *testing.T, tally rig.Tally) {
	t.Helper()
	if tally.Second > 0 {
		t.Errorf("%d second copies, though no node died", tally.Second)
	}
	if tally.Fenced > 0 {
		t.Errorf("%d outcomes of recipients that the queue did not have, though no node died", tally.Fenced)
	}
}

// TestLostWords loses what the relay and the database say to each other, by turns the
// answers to statements that were carried out and the statements, and with them the
// fate of commits. The relay must find it out, and neither refuse what is in the
// queue nor accept what is not.
func TestLostWords(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	proxy := r.NewProxy()
	node := r.Node(rig.NodeConfig{Name: "solo", Database: proxy.URL()})
	load := newLoad(t, r, node)
	load.Start()
	doubts := func() int { return node.Said("the fate of a commit is unknown") }
	for n := 0; n < kills() || doubts() == 0 && n < 10*kills(); n++ {
		awaitMore(t, load.Ledger, 10)
		<-moment()
		proxy.Lose([]rig.Way{rig.Answers, rig.Questions}[n%2], 100*time.Millisecond)
	}
	awaitMore(t, load.Ledger, 10)
	tally := settle(t, r, load, sink, node)
	t.Logf("%d octets were lost, %d commits were in doubt", proxy.Lost(), doubts())
	if doubts() == 0 {
		t.Error("no commit was in doubt: this run proves nothing")
	}
	wantCalm(t, tally)
}
