package pgtest

import (
	"context"
	"go/ast"
	"go/constant"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// Statements finds every statement of the package under test: what it has bound of its .sql
// files, of which none may be left over, and the constants sql….
func Statements(t testing.TB, bound func() (texts map[string]string, unused []string)) map[string]string {
	t.Helper()
	found, unused := bound()
	if len(unused) > 0 {
		t.Errorf("nobody runs the statements %q", unused)
	}
	found = maps.Clone(found)
	set := token.NewFileSet()
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
	}
	config := types.Config{Importer: importer.ForCompiler(set, "source", nil)}
	pkg, err := config.Check("statements", set, files, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range pkg.Scope().Names() {
		c, ok := pkg.Scope().Lookup(name).(*types.Const)
		if ok && strings.HasPrefix(name, "sql") {
			found[name] = constant.StringVal(c.Val())
		}
	}
	return found
}

// Prepare fails for each statement that the schema does not understand.
func Prepare(t testing.TB, statements map[string]string) {
	t.Helper()
	if len(statements) == 0 {
		t.Fatal("found no statements")
	}
	db, ctx := New(t), context.Background()
	conn, err := pgx.Connect(ctx, db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for name, sql := range statements {
		if _, err := conn.Prepare(ctx, name, sql); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
