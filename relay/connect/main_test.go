package connect

import (
	"testing"

	"postern/internal/leaktest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }
