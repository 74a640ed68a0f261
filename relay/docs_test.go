package relay_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// docs/flow.md names a file and a function at each step: they are there.
func TestFlowNamesFunctions(t *testing.T) {
	t.Parallel()
	page := read(t, "../docs/flow.md")
	found := 0
	for _, m := range regexp.MustCompile("`([a-z/_]+\\.go)\\s+(\\w+)`").FindAllStringSubmatch(page, -1) {
		if found++; !hasFunction(t, filepath.Join("..", m[1]), m[2]) {
			t.Errorf("docs/flow.md names %s in %s, where it is not", m[2], m[1])
		}
	}
	if steps := len(regexp.MustCompile(`(?m)^\d+\. `).FindAllString(page, -1)); found < 2*steps || steps < 10 {
		t.Errorf("only %d functions are named in %d steps", found, steps)
	}
}

func hasFunction(t *testing.T, file, name string) bool {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Error(err)
		return false
	}
	for _, d := range f.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Name.Name == name {
			return true
		}
	}
	return false
}

// docs/rfcs.md says in parentheses at the end of each point where it is done: in files and
// packages that are there, below this folder or from the top.
func TestRFCsNameSources(t *testing.T) {
	t.Parallel()
	found := 0
	for point := range strings.SplitSeq(read(t, "../docs/rfcs.md"), "\n- ") {
		point, _, _ = strings.Cut(point, "\n\n")
		_, where, _ := strings.Cut(regexp.MustCompile(`\([^()]+\)\.\n*$`).FindString(point), "(")
		for _, m := range regexp.MustCompile("`([a-z0-9/_.]+)`").FindAllStringSubmatch(where, -1) {
			found++
			_, below := os.Stat(m[1])
			if _, top := os.Stat(filepath.Join("..", m[1])); below != nil && top != nil {
				t.Errorf("docs/rfcs.md names %s, which is not there", m[1])
			}
		}
	}
	if found < 80 {
		t.Errorf("only %d sources are named", found)
	}
}
