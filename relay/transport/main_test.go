package transport

import (
	"testing"

	"postern/internal/leaktest"
	"postern/internal/pgtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestStatements(t *testing.T) {
	t.Parallel()
	found, unused := texts.Bound() // it has no others
	if len(unused) > 0 {
		t.Errorf("nobody runs the statements %q", unused)
	}
	pgtest.Prepare(t, found)
}
