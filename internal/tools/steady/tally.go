package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// test names one test or, without a name, what a package does beside its tests.
type test struct{ pkg, name string }

func (t test) String() string {
	return strings.TrimSpace(t.pkg + " " + cmp.Or(t.name, "(the package)"))
}

// tally is how often each test was red.
type tally map[test]int

func (t tally) print(out io.Writer) {
	if len(t) == 0 {
		fmt.Fprintln(out, "nothing was red")
		return
	}
	fmt.Fprintln(out, "red:")
	for _, at := range slices.SortedFunc(maps.Keys(t), func(a, b test) int {
		return cmp.Or(cmp.Compare(t[b], t[a]), strings.Compare(a.String(), b.String()))
	}) {
		fmt.Fprintf(out, "%4d × %s\n", t[at], at)
	}
}

// event is one line of "go test -json"; see "go doc test2json".
type event struct{ Action, Test, Output string }

// read returns the tests of a package that failed, the innermost, and prints what they
// said; a package that failed by itself says all that nobody has said otherwise.
func read(events io.Reader, pkg string, out io.Writer) (failed []test) {
	said := make(map[string]string)
	whole := false
	for lines := bufio.NewReader(events); ; {
		line, err := lines.ReadString('\n')
		if err != nil {
			break
		}
		var e event
		if json.Unmarshal([]byte(line), &e) != nil {
			e = event{Action: "output", Output: line}
		}
		switch e.Action {
		case "output", "build-output":
			said[e.Test] += e.Output
		case "pass", "skip":
			delete(said, e.Test)
		case "fail":
			if e.Test == "" {
				whole = true
				break
			}
			fmt.Fprint(out, said[e.Test])
			delete(said, e.Test)
			if !slices.ContainsFunc(failed, func(t test) bool { return strings.HasPrefix(t.name, e.Test+"/") }) {
				failed = append(failed, test{pkg, e.Test})
			}
		}
	}
	if whole && len(failed) == 0 {
		failed = append(failed, test{pkg, ""})
		for _, name := range slices.Sorted(maps.Keys(said)) {
			fmt.Fprint(out, said[name])
		}
	}
	return failed
}
