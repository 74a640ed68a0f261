package content

import (
	"strings"
	"testing"

	"postern/internal/pg"
	"postern/internal/pgtest"
)

// Every statement of the package is one that the schema understands.
func TestStatementsPrepare(t *testing.T) {
	t.Parallel()
	pgtest.Prepare(t, pgtest.Statements(t, texts.Bound))
}

// A window of a body is found by the primary key.
func TestPlansUseKeys(t *testing.T) {
	t.Parallel()
	if plan := pgtest.GenericPlan(t, pgtest.New(t), pg.TuneWork, sqlChunks); strings.Contains(plan, "Seq Scan") {
		t.Errorf("a window is not found by its key:\n%s", plan)
	}
}
