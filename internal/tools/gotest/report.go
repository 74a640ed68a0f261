package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// event is one line of "go test -json"; see "go doc test2json".
type event struct {
	Action  string
	Package string
	Test    string
	Output  string
}

// test names one test or, without a name, a package.
type test struct{ pkg, name string }

// reporter keeps each test's output until it is known how the test ends.
type reporter struct {
	out     io.Writer
	held    map[test][]string
	skipped int
}

// report prints the events as they come and returns how many tests were
// skipped.
func report(events io.Reader, out io.Writer) (skipped int, err error) {
	r := &reporter{out: out, held: make(map[test][]string)}
	lines := bufio.NewReader(events)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			r.line(line)
		}
		if err == io.EOF {
			return r.skipped, nil
		}
		if err != nil {
			return r.skipped, fmt.Errorf("read events: %w", err)
		}
	}
}

// line takes what is no event, as some errors of the go command are, as it is.
func (r *reporter) line(line []byte) {
	var e event
	if err := json.Unmarshal(line, &e); err != nil {
		_, _ = r.out.Write(line)
		return
	}
	at := test{e.Package, e.Test}
	switch e.Action {
	case "build-output":
		fmt.Fprint(r.out, e.Output)
	case "output":
		r.output(at, e.Output)
	case "pass":
		delete(r.held, at)
	case "skip":
		if at.name != "" {
			r.skipped++
			r.flush(at)
		}
	case "fail":
		if at.name == "" {
			r.flushPackage(at.pkg)
		}
		r.flush(at)
	}
}

// output prints a package's output immediately, and keeps a test's output and the seed of
// the order of tests.
func (r *reporter) output(at test, text string) {
	switch {
	case strings.HasPrefix(text, "=== "):
	case at.name != "" || strings.HasPrefix(text, "-test.shuffle "):
		r.held[at] = append(r.held[at], text)
	case text != "PASS\n":
		fmt.Fprint(r.out, text)
	}
}

func (r *reporter) flush(at test) {
	for _, text := range r.held[at] {
		fmt.Fprint(r.out, text)
	}
	delete(r.held, at)
}

// flushPackage prints the output of tests that have not ended when their
// package has: a panic, a deadlock or a timeout ended them.
func (r *reporter) flushPackage(pkg string) {
	names := slices.SortedFunc(maps.Keys(r.held), func(a, b test) int {
		return strings.Compare(a.name, b.name)
	})
	for _, at := range names {
		if at.pkg == pkg {
			r.flush(at)
		}
	}
}
