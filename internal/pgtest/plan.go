package pgtest

import (
	"context"
	"encoding/json"
	"slices"
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
