package relay_test

import (
	"testing"

	"postern/internal/rig"
)

func TestMain(m *testing.M) { rig.Main(m) }
