package main

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestRead(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, events, says string
		failed             []test
	}{
		{"green", `
{"Action":"output","Test":"TestA","Output":"fine\n"}
{"Action":"pass","Test":"TestA"}
{"Action":"pass"}
`, "", nil},
		{"the innermost test", `
{"Action":"output","Test":"TestA/one","Output":"wrong\n"}
{"Action":"fail","Test":"TestA/one"}
{"Action":"fail","Test":"TestA"}
{"Action":"fail","Test":"TestAB"}
{"Action":"fail"}
`, "wrong\n", []test{{"p", "TestA/one"}, {"p", "TestAB"}}},
		{"a panic", `
{"Action":"output","Test":"TestA","Output":"panic: oh\n"}
{"Action":"output","Output":"FAIL\tp\n"}
{"Action":"fail"}
`, "FAIL\tp\npanic: oh\n", []test{{"p", ""}}},
		{"the compiler", `
{"Action":"build-output","Output":"a.go:1: syntax error\n"}
no event
{"Action":"fail"}
`, "a.go:1: syntax error\nno event\n", []test{{"p", ""}}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			if failed := read(strings.NewReader(strings.TrimPrefix(test.events, "\n")), "p", &out); !slices.Equal(failed, test.failed) {
				t.Errorf("failed: %v, want %v", failed, test.failed)
			}
			if out.String() != test.says {
				t.Errorf("printed %q, want %q", out.String(), test.says)
			}
		})
	}
}

// TestRuns counts a test that is red every second time.
func TestRuns(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module m\n",
		"a_test.go": `package m
import ("os"; "testing")
func TestGood(t *testing.T) {}
func TestOdd(t *testing.T) {
	if os.Remove("mark") != nil {
		os.WriteFile("mark", nil, 0o600)
		t.Error("odd")
	}
}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	red := plan{dir: dir, packages: []string{"."}, runs: 3, timeout: time.Hour}.run(t.Context(), &out)
	red.print(&out)
	if !maps.Equal(red, tally{{".", "TestOdd"}: 2}) {
		t.Errorf("%v\n%s", red, &out)
	}
	for _, want := range []string{"FAIL 1/3 . ", "ok   2/3 . ", "FAIL 3/3 . ", "odd", "red:\n   2 × . TestOdd\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("it does not say %q:\n%s", want, &out)
		}
	}
}
