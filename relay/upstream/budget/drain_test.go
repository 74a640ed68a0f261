package budget

import (
	"testing"
	"time"
)

// TestDrain: two nodes send what waits as fast as the budget allows, each message waking about
// once, whichever node it wakes at.
func TestDrain(t *testing.T) {
	t.Parallel()
	const setting, messages, mostAllowed = "messages 100/10s", 480, 100
	w := newWorld(t, setting)
	nodes := []*site{w.node(), w.node()}
	type message struct {
		at    time.Duration // its turn
		again bool
		node  *site         // that has it in hand
		until time.Duration // its patience
	}
	var list []*message
	for i := range messages { // over 10 s
		list = append(list, &message{at: w.now + time.Duration(i)*20*time.Millisecond})
	}
	var server []sent
	wakes := 0
	for step := 0; len(list) > 0 && step < 1200; step++ {
		for _, n := range nodes {
			n.turnOver()
		}
		var rest []*message
		for i, m := range list {
			if m.at > w.now {
				rest = append(rest, m)
				continue
			}
			if m.node == nil {
				wakes++
				m.node, m.until = nodes[i%2], w.now+patience
			}
			a := again(setting)
			a.Again = m.again
			m.node.mu.Lock()
			u := m.node.account(&a)
			done, wait := m.node.Budgets.try(u, u.limits, &a, w.now < m.until)
			m.node.mu.Unlock()
			switch {
			case done != nil:
				server = append(server, sent{w.now, 1})
				done()
				continue
			case wait != nil:
				turn := m.node.Turn(forBudget+"out", 1, m.again)
				m.at, m.again, m.node = w.now+turn.In, true, nil
			}
			rest = append(rest, m)
		}
		list = rest
		w.pass(50 * time.Millisecond)
	}
	took := w.now - start
	t.Logf("%d messages in %v, %d wakes", len(server), took, wakes)
	if got := most(server, 10*time.Second, one); got > mostAllowed {
		t.Errorf("%d in a window", got)
	}
	if len(list) > 0 || took > 50*time.Second || wakes > 2*messages+messages/2 { // the first is its arrival
		t.Errorf("%d are left after %v and %d wakes", len(list), took, wakes)
	}
}
