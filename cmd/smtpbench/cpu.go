package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// clockTick is the unit of times in /proc: USER_HZ is 100 on every architecture
// that Go supports.
const clockTick = time.Second / 100

// A meter reads the processor time that a part of the measured system has used.
type meter struct {
	name string
	read func() (time.Duration, error)
}

// treeMeter measures a process and all its descendants, also those that have ended.
func treeMeter(name string, pid int) meter {
	return meter{name, func() (time.Duration, error) { return treeCPU(pid) }}
}

// procStat is what /proc/PID/stat says (proc(5)).
type procStat struct {
	pid    int
	parent int
	cpu    time.Duration // its own and that of its children that have ended
}

// parseStat reads a line of stat. The name may hold blanks and parentheses.
func parseStat(line string) (procStat, bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return procStat{}, false
	}
	f := strings.Fields(line[end+1:]) // from the third field on
	if len(f) < 15 {
		return procStat{}, false
	}
	var numbers [6]int // pid, parent, utime, stime, cutime, cstime
	for i, text := range []string{strings.TrimSpace(line[:open]), f[1], f[11], f[12], f[13], f[14]} {
		n, err := strconv.Atoi(text)
		if err != nil {
			return procStat{}, false
		}
		numbers[i] = n
	}
	ticks := numbers[2] + numbers[3] + numbers[4] + numbers[5]
	return procStat{numbers[0], numbers[1], time.Duration(ticks) * clockTick}, true
}

func treeCPU(root int) (time.Duration, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, fmt.Errorf("list processes: %w", err)
	}
	all := make(map[int]procStat, len(files))
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			continue // it has ended
		}
		if p, ok := parseStat(string(text)); ok {
			all[p.pid] = p
		}
	}
	if _, ok := all[root]; !ok {
		return 0, fmt.Errorf("processor time of process %d: %w", root, fs.ErrNotExist)
	}
	return sumTree(all, root), nil
}

// sumTree adds up a process and its descendants.
func sumTree(all map[int]procStat, root int) time.Duration {
	var sum time.Duration
	for _, p := range all {
		at := p
		for range len(all) { // a loop in what was read at different moments must not hold us
			if at.pid == root {
				sum += p.cpu
				break
			}
			next, ok := all[at.parent]
			if !ok {
				break
			}
			at = next
		}
	}
	return sum
}

const (
	quietPeriod = 250 * time.Millisecond
	quietLimit  = 5 * time.Second
)

// settled waits until the measured system has done what it still had to do after
// the last arrival, so that this is in the bill, and returns the last readings.
func settled(ctx context.Context, meters []meter) ([]time.Duration, error) {
	readings, err := readAll(meters)
	for limit := time.Now().Add(quietLimit); err == nil && time.Now().Before(limit); {
		select {
		case <-ctx.Done():
			return readings, ctx.Err()
		case <-time.After(quietPeriod):
		}
		var now []time.Duration
		if now, err = readAll(meters); err != nil {
			break
		}
		var work time.Duration
		for i := range now {
			work += now[i] - readings[i]
		}
		readings = now
		if work <= clockTick {
			break
		}
	}
	return readings, err
}

func readAll(meters []meter) ([]time.Duration, error) {
	readings := make([]time.Duration, len(meters))
	for i, m := range meters {
		var err error
		if readings[i], err = m.read(); err != nil {
			return nil, err
		}
	}
	return readings, nil
}

// ownCPU is the processor time of this process.
func ownCPU() time.Duration {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		return 0 // cannot happen: getrusage(2) fails for wrong arguments only
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// peakMemory is the most resident memory that a process has had since forgetPeak,
// in octets.
func peakMemory(pid int) (int64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("memory of process %d: %w", pid, err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("the kernel does not say how much memory a process has had")
}

// forgetPeak makes the peak the present use (proc(5), clear_refs).
func forgetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0); err != nil {
		return fmt.Errorf("forget the memory peak of process %d: %w", pid, err)
	}
	return nil
}
