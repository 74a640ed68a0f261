package crowd

import (
	"net"
	"testing"
)

// TestNoRoom: when requests are in work on all connections, a further one is closed.
func TestNoRoom(t *testing.T) {
	t.Parallel()
	c := New(nil, 1)
	mine, theirs := net.Pipe()
	defer theirs.Close()
	c.enter(mine).Serve(func() {
		if c.enter(theirs) != nil {
			t.Error("one too many came in")
		}
	})
	if c.enter(theirs) == nil {
		t.Error("one that waits did not give way")
	}
	if len(c.guests) != 1 {
		t.Errorf("%d are open", len(c.guests))
	}
}
