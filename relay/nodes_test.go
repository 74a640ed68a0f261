package relay_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"postern/internal/longtest"
	"postern/internal/rig"
)

func TestTwoNodes(t *testing.T) {
	t.Parallel()
	t.Run("share", func(t *testing.T) { t.Parallel(); testShare(t) })
	t.Run("halves", func(t *testing.T) { t.Parallel(); testHalves(t) })
	t.Run("killed", func(t *testing.T) { t.Parallel(); testKilledNode(t) })
	t.Run("stopped", func(t *testing.T) { t.Parallel(); testStoppedNode(t) })
}

// testShare gives two nodes mail concurrently: both deliver, and nothing twice.
func testShare(t *testing.T) {
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	a, b := r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})
	load := newLoad(t, r, a, b)
	load.Each = 30
	load.Start()
	load.Wait()
	tally := settle(t, r, load, sink, a, b)
	if tally.Second > 0 || tally.Fenced > 0 {
		t.Errorf("%d second copies and %d fenced outcomes without a fault", tally.Second, tally.Fenced)
	}
	by := receivedBy(sink)
	if by["a.test"] == 0 || by["b.test"] == 0 {
		t.Errorf("the nodes do not share the work: %v", by)
	}
}

// testHalves lets one node accept and the other deliver.
func testHalves(t *testing.T) {
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	a, b := r.Node(rig.NodeConfig{Name: "a", Only: "submission"}), r.Node(rig.NodeConfig{Name: "b", Only: "delivery"})
	load := newLoad(t, r, a)
	load.Each = 20
	load.Start()
	load.Wait()
	tally := settle(t, r, load, sink, a, b)
	if tally.Second > 0 {
		t.Errorf("%d second copies without a fault", tally.Second)
	}
	if by := receivedBy(sink); len(by) != 1 || by["b.test"] == 0 {
		t.Errorf("delivered by %v, want b.test alone", by)
	}
}

// receivedBy counts what each node has delivered.
func receivedBy(sink *rig.Sink) map[string]int {
	by := map[string]int{}
	for _, m := range sink.Received() {
		by[m.Hello]++
	}
	return by
}

// pair is node a, which has accepted mail that the sink holds at a step, and node b.
type pair struct {
	rig     *rig.Rig
	sink    *rig.Sink
	a, b    *rig.Node
	load    *rig.Load
	release func()
}

const heldConnections = 5

// newPair has as many deliveries of node a at the step as it has connections; the
// rest of its mail is in its memory. drain is its drain_time.
func newPair(t *testing.T, step, drain string) *pair {
	t.Helper()
	p := &pair{rig: rig.New(t, false), sink: rig.NewSink(t, "", 0)}
	p.rig.RouteTo(p.sink, heldConnections)
	p.a, p.b = p.rig.Node(rig.NodeConfig{Name: "a", Drain: drain}), p.rig.Node(rig.NodeConfig{Name: "b"})
	p.release = p.sink.Hold(step, "a.test")
	p.load = newLoad(t, p.rig, p.a)
	p.load.Each = 10
	p.load.Shape = func(random *rand.Rand) rig.Shape {
		to := []string{fmt.Sprintf("rcpt%d@one.test", random.IntN(1000)), fmt.Sprintf("rcpt%d@two.test", random.IntN(1000))}
		return rig.Shape{From: "sender@" + rig.Domain, Size: 4 << 10, To: to}
	}
	p.load.Start()
	p.load.Wait()
	if !p.sink.WaitHeld(step, "a.test", heldConnections) {
		t.Fatal("node a does not deliver")
	}
	return p
}

// testKilledNode kills a node whose upstream has messages for which it has said
// nothing yet: the other node delivers all of them, those a second time and flagged.
func testKilledNode(t *testing.T) {
	p := newPair(t, rig.BeforeReply, "")
	before := len(p.sink.Received())
	p.a.Kill()
	killed := time.Now()
	p.release()
	if !p.sink.WaitReceivedBy("b.test", p.load.Ledger.Accepted()) {
		t.Fatalf("node b has delivered %v of the %d messages of the dead node", receivedBy(p.sink), p.load.Ledger.Accepted())
	}
	t.Logf("the mail of the dead node went out in %.1f s", time.Since(killed).Seconds())
	tally := settle(t, p.rig, p.load, p.sink, p.b)
	if want := 2 * before; tally.Second != want {
		t.Errorf("%d second copies, want %d: one for each recipient that the dead node had sent", tally.Second, want)
	}
}

// testStoppedNode stops a node for a minute just before it would send messages:
// it must find out by itself that others have them by now.
func testStoppedNode(t *testing.T) {
	p := newPair(t, rig.BeforeData, "")
	dead := p.rig.Epoch("a")
	p.a.Pause()
	minute := time.After(time.Minute)
	p.release() // 354 waits in the stopped node's sockets
	if !p.sink.WaitReceivedBy("b.test", p.load.Ledger.Accepted()) {
		t.Fatalf("node b has delivered %v of the %d messages of the stopped node", receivedBy(p.sink), p.load.Ledger.Accepted())
	}
	<-minute
	p.a.Continue()
	woke := time.Now()

	// It goes on under a new epoch.
	awake := newLoad(t, p.rig, p.a)
	awake.Ledger, awake.Shape = p.load.Ledger, p.load.Shape
	awake.Start()
	accepted := p.load.Ledger.Accepted()
	awaitMore(t, p.load.Ledger, 20)
	awake.Stop()
	t.Logf("%d messages were accepted before it woke", accepted)
	tally := settle(t, p.rig, p.load, p.sink, p.a, p.b)
	if tally.Second > 0 {
		t.Errorf("%d second copies, though the stopped node had not sent any", tally.Second)
	}
	epochs := epochsOf(p.rig.Evidence(p.load.Ledger, p.sink))
	revived := 0
	for _, m := range p.sink.Received() {
		if m.Hello != "a.test" || m.At.Before(woke) {
			continue
		}
		revived++
		if epoch, ok := epochs[m.Serial]; !ok || epoch == dead {
			t.Errorf("%s was delivered by epoch %d (recorded: %t) after that epoch was dead", m.ID, epoch, ok)
		}
	}
	if revived == 0 {
		t.Error("the node delivers nothing after it woke")
	}
}

// epochsOf finds the epoch of each reception by the reply that it was given.
func epochsOf(e rig.Evidence) map[string]int64 {
	epochs := map[string]int64{}
	for _, a := range e.History {
		if _, serial, ok := strings.Cut(a.ReplyText, "taken as "); ok {
			epochs[serial] = a.Epoch
		}
	}
	return epochs
}

// TestNodesUnderFire kills and stops two nodes in turn under load, some for longer
// than they may trust their lease, and once for longer than the lease.
func TestNodesUnderFire(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	nodes := []*rig.Node{r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})}
	load := newLoad(t, r, nodes...)
	load.Pace = 100 * time.Millisecond // most is sent while a node is stopped, and more of it shows nothing more
	if longtest.Run() {
		load.Pace = 20 * time.Millisecond
	}
	load.Start()
	stops := []time.Duration{time.Second, 0, 22 * time.Second, 0, 50 * time.Second, 0}
	for n := range max(len(stops), kills()/5) {
		awaitMore(t, load.Ledger, 5)
		<-moment()
		node := nodes[rand.IntN(len(nodes))]
		if stop := stops[n%len(stops)]; stop > 0 {
			node.Pause()
			<-time.After(stop)
			node.Continue()
			continue
		}
		node.Kill()
		node.Start()
		node.Ready()
	}
	awaitMore(t, load.Ledger, 5)
	settle(t, r, load, sink, nodes...)
}
