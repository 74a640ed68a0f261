// Package boot has a clock that goes on while the machine sleeps. Go's monotonic clock stops
// during a suspend, and a wall clock can be set: leases are counted by neither.
package boot

import (
	"time"

	"golang.org/x/sys/unix"
)

// Clock is the clock since the machine's start.
type Clock struct{}

// Now is the time since some fixed moment of this machine.
func (Clock) Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return time.Since(processStart) // kernels without CLOCK_BOOTTIME
	}
	return time.Duration(ts.Nano())
}

var processStart = time.Now()
