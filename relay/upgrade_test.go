package relay_test

import (
	"strings"
	"testing"
	"time"

	"postern/internal/rig"
)

// TestRollingUpgrade moves a load from nodes of this version to nodes of the next, on
// one database, as docs/operate.md says: migrate, then the nodes one after another.
// The next version is this tree with one more migration.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	next := r.Next()
	sink := rig.NewSink(t, "", 40*time.Millisecond)
	r.RouteTo(sink, 10)
	a, b := r.Node(rig.NodeConfig{Name: "a"}), r.Node(rig.NodeConfig{Name: "b"})
	load := newLoad(t, r, a, b)
	load.Start()
	awaitMore(t, load.Ledger, 20)

	complaint := next.Refused("serve", "--config", a.ConfigFile())
	if !strings.Contains(complaint, "older than this program: run 'postern migrate'") {
		t.Errorf("a new node on the old schema says %q", complaint)
	}
	if said := next.Postern("", "migrate"); !strings.Contains(said, "applied migration 9999_next") {
		t.Errorf("migrate says %q", said)
	}
	awaitMore(t, load.Ledger, 20) // the old nodes go on

	// An old node may even be started again: its machine may have failed meanwhile.
	b.Terminate()
	b.Start()
	b.Ready()
	if said := r.Postern("", "migrate", "--check"); !strings.Contains(said, "newer than this program, which may run on it") {
		t.Errorf("the old program says of the new schema %q", said)
	}
	awaitMore(t, load.Ledger, 20)

	upgraded := []*rig.Node{a, b}
	for _, node := range upgraded {
		node.Terminate()
		node.Become(next)
		node.Start()
		node.Ready()
		awaitMore(t, load.Ledger, 20)
	}
	moved := time.Now()
	awaitMore(t, load.Ledger, 20)
	wantOrderly(t, settle(t, r, load, sink, upgraded...))
	late := map[string]int{}
	for _, m := range sink.Received() {
		if m.At.After(moved) {
			late[m.Hello]++
		}
	}
	if late["a.test"]+late["b.test"] == 0 {
		t.Error("the new nodes deliver nothing")
	}
}
