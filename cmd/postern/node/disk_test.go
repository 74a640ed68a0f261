package node

import "testing"

// TestR5PrivateDiskIsAsked: the folder of a private database is ours; a path that another
// server names may be another disk here.
func TestR5PrivateDiskIsAsked(t *testing.T) {
	t.Parallel()
	n := &Node{}
	if n.diskFree() != nil {
		t.Error("the disk of a database elsewhere is asked")
	}
	n.Config.Database.Private = t.TempDir()
	if free, err := n.diskFree()(); err != nil || free <= 0 {
		t.Errorf("%d octets are free, %v", free, err)
	}
}
