package oauth

import (
	"os"
	"testing"
)

// TestMain is a node that is to be killed, where a test has started it as one.
func TestMain(m *testing.M) {
	if os.Getenv("ORPHAN_DATABASE") != "" {
		child()
	}
	os.Exit(m.Run())
}
