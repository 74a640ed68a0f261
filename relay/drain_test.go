package relay_test

import (
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

// drains is how often a node is stopped in TestDrainUnderLoad.
func drains() int {
	if longtest.Run() {
		return 50
	}
	return 6
}

// stop asks a node to stop and says how long that took. How its drain_time is kept to,
// the tests of cmd/postern say; here what does not keep to it takes longer than the rig
// waits, for it waits for what never comes.
func stop(t *testing.T, node *rig.Node) time.Duration {
	t.Helper()
	began := time.Now()
	node.Terminate()
	return time.Since(began)
}

// TestDrainUnderLoad stops two nodes in turn by SIGTERM under load and starts them
// again. An orderly stop loses nothing, makes no second copy, and answers every client
// that has sent its final dot.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	nodes := []*rig.Node{r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})}
	load := newLoad(t, r, nodes...)
	load.Start()
	var longest time.Duration
	for n := range drains() {
		awaitMore(t, load.Ledger, 10)
		<-moment()
		node := nodes[n%len(nodes)]
		longest = max(longest, stop(t, node))
		node.Start()
		node.Ready()
	}
	awaitMore(t, load.Ledger, 10)
	t.Logf("%d stops, the longest took %.1f s", drains(), longest.Seconds())
	tally := settle(t, r, load, sink, nodes...)
	wantOrderly(t, tally)
	for _, node := range nodes {
		if cut := node.Said("not all work ended in time"); cut > 0 {
			t.Errorf("node %s cut work %d times", node.Name, cut)
		}
	}
}

// wantOrderly judges a run in which every node was stopped in good order.
func wantOrderly(t *testing.T, tally rig.Tally) {
	t.Helper()
	if tally.Second > 0 || tally.Fenced > 0 {
		t.Errorf("%d second copies and %d fenced outcomes, though every stop was orderly", tally.Second, tally.Fenced)
	}
	if tally.Unknown > 0 {
		t.Errorf("%d clients had no answer to their final dot, though every stop was orderly", tally.Unknown)
	}
}

// TestDrainStalledUpstream stops a node whose upstream says nothing to the final dot.
// The process ends in its time all the same; what became of those messages is unknown
// and recorded so, and the rest goes out by the other node, once.
func TestDrainStalledUpstream(t *testing.T) {
	t.Parallel()
	p := newPair(t, rig.BeforeReply, "8s")
	before := len(p.sink.Received())
	t.Logf("it took %.1f s", stop(t, p.a).Seconds())
	p.release()
	p.rig.Postern("", "queue", "retry", "--all") // and do not wait a minute
	if p.a.Said("not all work ended in time") == 0 {
		t.Error("the node does not say that it cut deliveries")
	}
	tally := settle(t, p.rig, p.load, p.sink, p.b)
	if want := 2 * before; tally.Second != want {
		t.Errorf("%d second copies, want %d: one for each recipient whose dot was not answered", tally.Second, want)
	}
	if tally.Fenced > 0 {
		t.Errorf("%d fenced outcomes: the node did not write what it knew", tally.Fenced)
	}
}

// TestDrainHungDatabase stops a node whose database has ceased to answer, with commits
// and outcomes under way: the process ends in its time, and the other node delivers
// all that was accepted.
func TestDrainHungDatabase(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	proxy := r.NewProxy()
	a := r.Node(rig.NodeConfig{Name: "a", Database: proxy.URL(), Drain: "5s"})
	b := r.Node(rig.NodeConfig{Name: "b"})
	load := newLoad(t, r, a, b)
	load.Start()
	awaitMore(t, load.Ledger, 20)
	proxy.Hang(rig.Answers)
	<-moment()
	t.Logf("it took %.1f s", stop(t, a).Seconds())
	awaitMore(t, load.Ledger, 20)
	tally := settle(t, r, load, sink, b)
	if a.Said("not all work ended in time") == 0 {
		t.Error("the node does not say that it could not end its work")
	}
	if tally.Unknown+tally.Second == 0 {
		t.Log("nothing was under way when the database hung")
	}
}
