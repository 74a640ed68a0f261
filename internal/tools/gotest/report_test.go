package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestReport(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		events  string
		want    string
		skipped int
	}{
		{"passing tests are silent", `
{"Action":"output","Package":"p","Test":"TestA","Output":"=== RUN   TestA\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- PASS: TestA (0.00s)\n"}
{"Action":"pass","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"PASS\n"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}`,
			"ok  \tp\t0.1s\n", 0},
		{"a failing test says why", `
{"Action":"output","Package":"p","Test":"TestA","Output":"    a.go:1: wrong\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"--- FAIL: TestA (0.00s)\n"}
{"Action":"fail","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}`,
			"    a.go:1: wrong\n--- FAIL: TestA (0.00s)\nFAIL\tp\t0.1s\n", 0},
		{"a skipped test is shown and counted", `
{"Action":"output","Package":"p","Test":"TestA","Output":"--- SKIP: TestA (0.00s)\n"}
{"Action":"output","Package":"p","Test":"TestA","Output":"    a.go:1: no swaks\n"}
{"Action":"skip","Package":"p","Test":"TestA"}
{"Action":"output","Package":"p","Output":"ok  \tp\t0.1s\n"}
{"Action":"pass","Package":"p"}`,
			"--- SKIP: TestA (0.00s)\n    a.go:1: no swaks\nok  \tp\t0.1s\n", 1},
		{"the seed is told of a failure only", `
{"Action":"output","Package":"p","Output":"-test.shuffle 17\n"}
{"Action":"pass","Package":"p"}
{"Action":"output","Package":"q","Output":"-test.shuffle 18\n"}
{"Action":"fail","Package":"q"}`,
			"-test.shuffle 18\n", 0},
		{"a package without tests is no skipped test", `
{"Action":"output","Package":"p","Output":"?   \tp\t[no test files]\n"}
{"Action":"skip","Package":"p"}`,
			"?   \tp\t[no test files]\n", 0},
		{"a test that a panic ended says so", `
{"Action":"output","Package":"p","Test":"TestA","Output":"panic: oh\n"}
{"Action":"output","Package":"p","Output":"FAIL\tp\t0.1s\n"}
{"Action":"fail","Package":"p"}`,
			"FAIL\tp\t0.1s\npanic: oh\n", 0},
		{"what the compiler says is passed on", `
{"ImportPath":"p","Action":"build-output","Output":"p/a.go:1: syntax error\n"}
not an event`,
			"p/a.go:1: syntax error\nnot an event", 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			skipped, err := report(strings.NewReader(strings.TrimPrefix(test.events, "\n")), &out)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(test.want, out.String()); diff != "" {
				t.Errorf("printed (-want +got):\n%s", diff)
			}
			if skipped != test.skipped {
				t.Errorf("counted %d skipped tests, want %d", skipped, test.skipped)
			}
		})
	}
}

// TestExitStatus runs the real go command on a module of one package.
func TestExitStatus(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		body   string
		strict bool
		want   int
	}{
		{"pass", "", true, 0},
		{"fail", "t.Error()", false, 1},
		{"skip", "t.Skip()", false, 0},
		{"skip under CI", "t.Skip()", true, 1},
		{"no compile", "}", false, 1},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			write(t, filepath.Join(dir, "go.mod"), "module m\n")
			write(t, filepath.Join(dir, "a_test.go"),
				"package m\nimport \"testing\"\nfunc TestA(t *testing.T) {"+test.body+"}\n")
			var stdout, stderr strings.Builder
			r := runner{dir: dir, strict: test.strict, stdout: &stdout, stderr: &stderr}
			if got := r.run([]string{"."}); got != test.want {
				t.Errorf("exit status %d, want %d; it said:\n%s%s", got, test.want, &stdout, &stderr)
			}
		})
	}
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
