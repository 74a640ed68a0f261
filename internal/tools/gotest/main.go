// Command gotest runs "go test" and prints what it would print without -v, and
// in addition every skipped test with its reason, which "go test" keeps to
// itself. With CI=true in the environment a skipped test fails the run: there,
// everything that a test needs has to be there.
//
// Usage: gotest [arguments of go test]
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	r := runner{strict: os.Getenv("CI") == "true", stdout: os.Stdout, stderr: os.Stderr}
	os.Exit(r.run(os.Args[1:]))
}

type runner struct {
	dir            string // where to run, if not here
	strict         bool   // a skipped test is a failed one
	stdout, stderr io.Writer
}

// run returns the exit status: 0 when every test has passed or may be skipped.
func (r runner) run(args []string) int {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Dir = r.dir
	cmd.Stderr = r.stderr
	events, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(r.stderr, "gotest:", err)
		return 1
	}
	skipped, readErr := report(events, r.stdout)
	if err := cmd.Wait(); err != nil {
		fmt.Fprintln(r.stdout, "FAIL")
		return 1
	}
	if readErr != nil {
		fmt.Fprintln(r.stderr, "gotest:", readErr)
		return 1
	}
	if skipped > 0 && r.strict {
		fmt.Fprintf(r.stdout, "FAIL: %d skipped tests, and none may be skipped when CI=true\n", skipped)
		return 1
	}
	return 0
}
