// Command steady runs the tests of packages again and again, under the race detector,
// in another order each time and beside loops that keep processors busy, and says
// which of them were red and how often. On a busy machine a test is to be red when the
// code is, and only then.
//
// Usage: steady [-n runs] [-busy loops] [-timeout time] [package...]
//
// Each package runs by itself, all of them before any runs again. Exit status: 0 all
// were green, 1 some were not or it was interrupted, which ends it with the results so
// far, 2 usage error.
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// plan is what is to be run.
type plan struct {
	dir      string // where to run, if not here
	packages []string
	runs     int
	timeout  time.Duration // of one package once
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (status int) {
	flags := flag.NewFlagSet("steady", flag.ContinueOnError)
	flags.SetOutput(stderr)
	var p plan
	flags.IntVar(&p.runs, "n", 10, "how often each package runs")
	loops := flags.Int("busy", 4, "how many loops keep a processor busy meanwhile")
	flags.DurationVar(&p.timeout, "timeout", 2*time.Hour, "how long one package may take, once")
	if err := flags.Parse(args); err != nil || p.runs < 1 || *loops < 0 {
		return 2
	}
	patterns := flags.Args()
	if len(patterns) == 0 {
		patterns = []string{"./..."}
	}
	var err error
	if p.packages, err = tested(ctx, patterns); err != nil {
		fmt.Fprintln(stderr, "steady:", err)
		return 2
	}
	busy(*loops)
	red := p.run(ctx, stdout)
	red.print(stdout)
	if ctx.Err() != nil {
		fmt.Fprintln(stdout, "and it was interrupted")
	}
	if len(red) > 0 || ctx.Err() != nil {
		return 1
	}
	return 0
}

// tested are the packages that have tests.
func tested(ctx context.Context, patterns []string) ([]string, error) {
	cmd := exec.CommandContext(ctx, "go", append([]string{"list", "-f", "{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}"}, patterns...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	packages := strings.Fields(string(out))
	if len(packages) == 0 {
		return nil, fmt.Errorf("no tests in %s", strings.Join(patterns, " "))
	}
	return packages, nil
}

// busy takes the time of processors until this process ends. Its loops are goroutines,
// so that none outlives it.
func busy(loops int) {
	runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + loops)
	for range loops {
		go func() {
			for n := uint64(1); ; {
				n ^= n<<13 ^ n>>7
			}
		}()
	}
}

// run runs all packages and returns how often each test was red.
func (p plan) run(ctx context.Context, out io.Writer) tally {
	red := make(tally)
	for n := range p.runs {
		for _, pkg := range p.packages {
			began := time.Now()
			failed := p.once(ctx, pkg, out)
			if ctx.Err() != nil { // what was interrupted says nothing
				return red
			}
			verdict := "ok  "
			if len(failed) > 0 {
				verdict = "FAIL"
			}
			fmt.Fprintf(out, "%s %d/%d %s %.0f s\n", verdict, n+1, p.runs, pkg, time.Since(began).Seconds())
			for _, at := range failed {
				red[at]++
			}
		}
	}
	return red
}

// once runs one package, prints what its red tests said and returns those.
func (p plan) once(ctx context.Context, pkg string, out io.Writer) []test {
	cmd := exec.CommandContext(ctx, "go", "test", "-json", "-race", "-shuffle=on", "-count=1", "-timeout", p.timeout.String(), pkg)
	// An interrupt is for the tests as well, which the go command would leave behind.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGINT) }
	cmd.Dir, cmd.Stderr = p.dir, out
	events, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		fmt.Fprintln(out, err)
		return []test{{pkg, ""}}
	}
	failed := read(events, pkg, out)
	if err := cmd.Wait(); err != nil && len(failed) == 0 {
		failed = []test{{pkg, ""}}
	}
	return failed
}
