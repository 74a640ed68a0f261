package delivery

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"postern/relay/upstream"
)

// TestSplit groups recipients by where they go, in their order.
func TestSplit(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		rcpts []string
		want  map[string][]int
	}{
		"one":         {[]string{"a@x.test"}, map[string][]int{"mx x.test": {0}}},
		"one way":     {[]string{"a@x.test", "b@X.test", "c@x.test"}, map[string][]int{"mx x.test": {0, 1, 2}}},
		"two in turn": {[]string{"a@x.test", "b@x.test", "c@y.test", "d@y.test"}, map[string][]int{"mx x.test": {0, 1}, "mx y.test": {2, 3}}},
		"mixed": {[]string{"a@x.test", "b@y.test", "c@x.test", "d@up.test", "e@y.test", "f@x.test"},
			map[string][]int{"mx x.test": {0, 2, 5}, "mx y.test": {1, 4}, "upstream sink": {3}}},
	}
	up := &upstream.Account{Name: "sink"}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			e := newEngine(newFakeQueue(), Config{Routes: routes{to: map[string]*upstream.Account{"up.test": up}}})
			d := message(t, test.rcpts...)
			got := map[string][]int{}
			for _, w := range e.split(d) {
				got[w.key] = append(got[w.key], numbers(w.rcpts)...)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Error(diff)
			}
			for i, r := range test.rcpts { // the groups must not have written over their neighbours
				if d.Recipients[i].Address != address(t, r) || d.Recipients[i].N != i {
					t.Errorf("recipient %d is now %+v", i, d.Recipients[i])
				}
			}
		})
	}
}

func TestLine(t *testing.T) {
	t.Parallel()
	var l line
	jobs := map[*job]int{}
	next := 0
	push := func(n int) {
		for range n {
			j := new(job)
			jobs[j] = next
			next++
			l.push(j)
		}
	}
	want := 0
	pop := func(n int) {
		for range n {
			if got := jobs[l.pop()]; got != want {
				t.Fatalf("popped %d, want %d", got, want)
			}
			want++
		}
	}
	for range 50 {
		push(7)
		pop(5)
	}
	if l.len() != 100 {
		t.Errorf("%d wait, want 100", l.len())
	}
	front := new(job)
	l.pushFront(front)
	if l.pop() != front {
		t.Error("what was put back is not the first")
	}
	pop(50)
	if rest := l.drain(); len(rest) != 50 || jobs[rest[0]] != want {
		t.Errorf("%d are left, from %d", len(rest), jobs[rest[0]])
	}
	if l.pop() != nil || l.len() != 0 {
		t.Error("something is left after drain")
	}
	if len(l.back) > 0 {
		t.Error(fmt.Sprint("memory is kept: ", len(l.back)))
	}
}
