package main

import (
	"os"
	"testing"
	"time"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	line := "42 (a) b (c) S 7 40 39 0 -1 4194304 1 2 3 4 150 50 7 3 20 0 1 0 100 0 0"
	want := procStat{pid: 42, parent: 7, cpu: 2100 * time.Millisecond}
	if got, ok := parseStat(line); !ok || got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	for _, bad := range []string{"", "42", "42 (a", ") 42 (", "x (a) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15", "42 (a) S 1 40 39"} {
		if got, ok := parseStat(bad); ok {
			t.Errorf("%q is read as %+v", bad, got)
		}
	}
}

func TestSumTree(t *testing.T) {
	t.Parallel()
	all := map[int]procStat{
		1: {1, 0, 1}, 2: {2, 1, 10}, 3: {3, 2, 100}, 4: {4, 3, 1000}, 5: {5, 1, 10000},
		8: {8, 9, 5}, 9: {9, 8, 5}, // as if numbers had been used again while we read
	}
	for root, want := range map[int]time.Duration{1: 11111, 2: 1110, 4: 1000, 5: 10000} {
		if got := sumTree(all, root); got != want {
			t.Errorf("tree of %d: %d, want %d", root, got, want)
		}
	}
}

func TestTreeCPUOfNobody(t *testing.T) {
	t.Parallel()
	if _, err := treeCPU(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := treeCPU(-1); err == nil {
		t.Error("a process that is not there has used time")
	}
}

func TestPeakMemory(t *testing.T) {
	t.Parallel()
	peak, err := peakMemory(os.Getpid())
	if err != nil || peak < 1<<20 {
		t.Errorf("peak %d: %v", peak, err)
	}
	if _, err := peakMemory(-1); err == nil {
		t.Error("a process that is not there has memory")
	}
}
