package audit

import (
	"testing"
	"time"

	"postern/internal/pgtest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestStoreAudit(t *testing.T) {
	t.Parallel()
	db, ctx := pgtest.New(t).Pool, t.Context()
	must(t, Record(ctx, db, "root", Deed{Action: "user add", Object: "alice@example.com"}))
	must(t, Record(ctx, db, "bob", Deed{"user disable", "alice@example.com", map[string]any{"reason": "lost"}}))
	for _, tt := range []struct {
		f    Filter
		want string
	}{
		{Filter{Limit: 10}, "bob user disable, root user add, "},
		{Filter{Limit: 1}, "bob user disable, "},
		{Filter{Limit: 10, Actor: "root", Since: time.Hour}, "root user add, "},
		{Filter{Limit: 10, Since: time.Microsecond}, ""},
	} {
		list, err := List(ctx, db, tt.f)
		must(t, err)
		got := ""
		for _, d := range list {
			got += d.Actor + " " + d.Action + ", "
		}
		if got != tt.want {
			t.Errorf("%+v: %s", tt.f, got)
		}
	}
}

// Retention finds old rows without reading those that stay.
func TestRetentionUsesIndexes(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	for _, sql := range []string{
		`insert into audit (at, actor, action, object) select now() - n * interval '1 hour', 'root', 'x', 'y' from generate_series(1, 20000) n`,
		`analyze audit`,
	} {
		_, err := db.Pool.Exec(t.Context(), sql)
		must(t, err)
	}
	plan := pgtest.Explain(t, db.Pool, deleteOld, 19990*time.Hour, 1000)
	if !plan.Uses("audit_at") || plan.RowsOf("audit") > 100 {
		t.Error(plan)
	}
}
