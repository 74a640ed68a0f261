package main

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/internal/pgtest"
)

// The queries of docs/postgres.md are ones that the schema answers.
func TestPostgresPageQueries(t *testing.T) {
	t.Parallel()
	pool := pgtest.New(t).Pool
	blocks := codeBlocks(t, "../../docs/postgres.md", "sql")
	if len(blocks) == 0 {
		t.Fatal("docs/postgres.md has no queries")
	}
	for _, block := range blocks {
		if _, err := pool.Exec(t.Context(), block, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Errorf("%v\n%s", err, block)
		}
	}
}
