package peers

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// A procStat is what /proc says of one process (proc(5), stat).
type procStat struct {
	pid     int
	name    string
	state   string
	session int
	cpu     time.Duration // its own
	reaped  time.Duration // of its children that have ended
}

// clockTick is the unit of times in /proc: USER_HZ is 100 on every architecture
// that Go supports.
const clockTick = time.Second / 100

// parseStat reads a line of stat; the name may hold blanks and parentheses.
func parseStat(line string) (procStat, bool) {
	open, end := strings.IndexByte(line, '('), strings.LastIndexByte(line, ')')
	if open < 0 || end < open {
		return procStat{}, false
	}
	pid, err := strconv.Atoi(strings.TrimSpace(line[:open]))
	f := strings.Fields(line[end+1:]) // from the third field on
	if err != nil || len(f) < 15 {
		return procStat{}, false
	}
	number := func(field int) int {
		n, _ := strconv.Atoi(f[field-3]) // the kernel's own digits
		return n
	}
	return procStat{
		pid: pid, name: line[open+1 : end], state: f[0], session: number(6),
		cpu:    time.Duration(number(14)+number(15)) * clockTick,
		reaped: time.Duration(number(16)+number(17)) * clockTick,
	}, true
}

// sessionProcesses are the processes of a session that run.
func sessionProcesses(session int) ([]procStat, error) {
	files, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var found []procStat
	for _, file := range files {
		p, ok := parseStat(readAll(file)) // not ok: it has just ended
		if ok && p.session == session && p.state != "Z" && p.state != "X" {
			found = append(found, p)
		}
	}
	return found, nil
}

// CPU is the processor time that Postfix has used since its start, of all its
// processes, in steps of 10 ms for each.
func (r *Relay) CPU() (time.Duration, error) {
	processes, err := sessionProcesses(r.session)
	if err != nil {
		return 0, err
	}
	var sum time.Duration
	for _, p := range processes {
		sum += p.cpu
		if p.pid == r.session { // the master, whose children all the others are
			sum += p.reaped
		}
	}
	return sum, nil
}
