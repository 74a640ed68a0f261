package pgtest

import (
	"context"
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Plan is an EXPLAIN ANALYZE, flattened.
type Plan []PlanNode

// PlanNode is one step of a Plan.
type PlanNode struct {
	Type     string  `json:"Node Type"`
	Relation string  `json:"Relation Name"`
	Index    string  `json:"Index Name"`
	Rows     float64 `json:"Actual Rows"`
	Loops    float64 `json:"Actual Loops"`
	Plans    Plan    `json:"Plans"`
}

// GenericPlan is how a statement is run on a connection with the settings of tune, whatever its
// arguments are.
func GenericPlan(t testing.TB, db *DB, tune, sql string) string {
	t.Helper()
	ctx := context.Background()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if _, err := conn.Exec(ctx, tune, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatal(err)
	}
	it, err := conn.Prepare(ctx, "it", sql)
	if err != nil {
		t.Fatalf("%v: %s", err, sql)
	}
	execute := "explain execute it"
	if n := len(it.ParamOIDs); n > 0 {
		execute += "(" + strings.TrimSuffix(strings.Repeat("null,", n), ",") + ")"
	}
	rows, _ := conn.Query(ctx, execute, pgx.QueryExecModeSimpleProtocol) // CollectRows has its error
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(lines, "\n")
}

// Explain runs a statement and says how the server did it.
func Explain(t testing.TB, db interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}, sql string, args ...any) Plan {
	t.Helper()
	var text []byte
	if err := db.QueryRow(t.Context(), `explain (analyze, format json) `+sql, args...).Scan(&text); err != nil {
		t.Fatal(err)
	}
	var top []struct{ Plan PlanNode }
	if err := json.Unmarshal(text, &top); err != nil {
		t.Fatal(err)
	}
	return Plan{top[0].Plan}.flat()
}

func (p Plan) flat() (all Plan) {
	for _, n := range p {
		below := n.Plans
		n.Plans = nil
		all = append(append(all, n), below.flat()...)
	}
	return all
}

// Uses reports whether the index is read.
func (p Plan) Uses(index string) bool {
	return slices.ContainsFunc(p, func(n PlanNode) bool { return n.Index == index && n.Type != "Bitmap Heap Scan" })
}

// RowsOf is how many rows of a table are read.
func (p Plan) RowsOf(relation string) (sum float64) {
	for _, n := range p {
		if n.Relation == relation {
			sum += n.Rows * n.Loops
		}
	}
	return sum
}
