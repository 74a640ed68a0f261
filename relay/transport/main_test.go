package transport

import (
	"testing"

	"postern/internal/leaktest"
	"postern/internal/pgtest"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

func TestStatements(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}
