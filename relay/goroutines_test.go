package relay_test

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unguarded are the functions of the node that begin a goroutine without a guard, each with why a
// panic in it is unlikely, or harms nothing.
var unguarded = map[string]string{
	"admin Start":                    "waits for a port",
	"admin serve":                    "net/http recovers the panics of handlers",
	"auth importHashes":              "belongs to a command",
	"relay/upstream/budget Visit":    "belongs to a command",
	"relay/acme start":               "accepts connections; what each sends is guarded",
	"relay/acme Start":               "Keeper.work recovers",
	"relay/delivery begin":           "worker.serve recovers",
	"relay/queue park":               "hands over values",
	"admin latest":                   "Overview.guardedRead recovers",
	"relay/submission open":          "session.close recovers",
	"relay/submission start":         "logins.ask recovers",
	"cmd/postern/node Run":           "starts loops that are guarded",
	"cmd/postern/node end":           "the process is ending",
	"cmd/postern/node rest":          "the process is ending",
	"cmd/postern/node together":      "the process is ending",
	"cmd/postern/node ListenSignals": "waits for signals",
	"cmd/postern/database Watched":   "compares the times of two starts",
	"internal/await All":             "waits",
	"internal/pgserver launchOnce":   "waits for a child process",
}

// TestGoroutinesAreGuarded: a panic that nobody recovers ends the whole node. Each goroutine of it
// runs under a panics.Guard, in a panics.Group, or in a function that recovers.
func TestGoroutinesAreGuarded(t *testing.T) {
	t.Parallel()
	used := map[string]bool{}
	for _, p := range nodePackages(t) {
		files := token.NewFileSet()
		bodies := bodiesOf(t, files, p)
		for name, list := range bodies {
			for _, body := range list {
				for _, start := range startsIn(body) {
					if guards(text(files, start)) || strings.Contains(text(files, body), "panics.Group") || allGuard(files, bodies, called(start)) {
						continue
					}
					key := p.name() + " " + name
					if used[key] = true; unguarded[key] == "" {
						t.Errorf("%s: a panic in this goroutine ends the node", files.Position(start.Pos()))
					}
				}
			}
		}
	}
	for key := range unguarded {
		if !used[key] {
			t.Errorf("%s begins no goroutine without a guard", key)
		}
	}
}

// nodePackages are our packages that the node is made of.
func nodePackages(t *testing.T) []pkg {
	t.Helper()
	out, err := exec.Command("go", "list", "-deps", module+"cmd/postern/node").Output()
	if err != nil {
		t.Fatal(err)
	}
	linked := strings.Fields(string(out))
	return slices.DeleteFunc(packages(t), func(p pkg) bool { return !slices.Contains(linked, p.ImportPath) })
}

// bodiesOf are the bodies of a package's functions and methods, by their names.
func bodiesOf(t *testing.T, files *token.FileSet, p pkg) map[string][]ast.Node {
	t.Helper()
	bodies := map[string][]ast.Node{}
	for _, name := range p.GoFiles {
		file, err := parser.ParseFile(files, filepath.Join(p.Dir, name), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range file.Decls {
			if f, ok := d.(*ast.FuncDecl); ok && f.Body != nil {
				bodies[f.Name.Name] = append(bodies[f.Name.Name], f.Body)
			}
		}
	}
	return bodies
}

// startsIn finds the calls and functions that run in goroutines begun by a function.
func startsIn(body ast.Node) (starts []ast.Node) {
	ast.Inspect(body, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			starts = append(starts, n.Call)
		case *ast.CallExpr:
			if f, ok := n.Fun.(*ast.SelectorExpr); ok && f.Sel.Name == "Go" && len(n.Args) == 1 {
				starts = append(starts, n.Args[0])
			}
		}
		return true
	})
	return starts
}

// called are the names of the functions that a goroutine calls, or of the one that it is.
func called(start ast.Node) (names []string) {
	ast.Inspect(start, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.CallExpr:
			switch f := n.Fun.(type) {
			case *ast.Ident:
				names = append(names, f.Name)
			case *ast.SelectorExpr:
				names = append(names, f.Sel.Name)
			}
		}
		return true
	})
	return names
}

// allGuard reports whether one of the names is of functions that all guard what they do.
func allGuard(files *token.FileSet, bodies map[string][]ast.Node, names []string) bool {
	return slices.ContainsFunc(names, func(name string) bool {
		return len(bodies[name]) > 0 && !slices.ContainsFunc(bodies[name], func(body ast.Node) bool { return !guards(text(files, body)) })
	})
}

func guards(text string) bool {
	return strings.Contains(text, "uard.Try(") || strings.Contains(text, "uard.Keep(") || strings.Contains(text, "*panics.Guard)(nil).Try(") || strings.Contains(text, "recover()")
}

func text(files *token.FileSet, n ast.Node) string {
	var b bytes.Buffer
	_ = printer.Fprint(&b, files, n)
	return b.String()
}
