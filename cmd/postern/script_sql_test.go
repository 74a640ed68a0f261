package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/rogpeppe/go-internal/testscript"
)

// runSQL is the command "sql FILE" of scripts: it puts into the script's database what
// a server would, and writes the rows of the last statement to stdout.
func runSQL(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: sql FILE")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, ts.Getenv("POSTERN_DATABASE_URL"))
	ts.Check(err)
	defer conn.Close(ctx)
	results, err := conn.PgConn().Exec(ctx, ts.ReadFile(args[0])).ReadAll()
	ts.Check(err)
	for _, row := range results[len(results)-1].Rows {
		var cells []string
		for _, cell := range row {
			cells = append(cells, string(cell))
		}
		_, err = fmt.Fprintln(ts.Stdout(), strings.Join(cells, " "))
		ts.Check(err)
	}
}
