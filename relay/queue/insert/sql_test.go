package insert

import (
	"strings"
	"testing"

	"postern/internal/pg"
	"postern/internal/pgtest"
)

// Every statement is one that the schema understands, sees to its own durability (relay/queue has a
// test of that), and finds its rows by the primary keys.
func TestStatements(t *testing.T) {
	t.Parallel()
	all := pgtest.Statements(t, texts.Bound)
	pgtest.Prepare(t, all)
	if len(all) != 4 {
		t.Errorf("%d statements", len(all))
	}
	db := pgtest.New(t)
	for name, sql := range all {
		if !strings.Contains(sql, "durably()") {
			t.Errorf("%s does not see to its own durability", name)
		}
		plan := pgtest.GenericPlan(t, db, pg.TuneCommit, sql)
		for _, bad := range []string{"recipient_owner", "Seq Scan on recipient", "Seq Scan on message", "Heap Scan on message"} {
			if strings.Contains(plan, bad) {
				t.Errorf("%s uses %s:\n%s", name, bad, plan)
			}
		}
	}
}
