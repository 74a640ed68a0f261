package queue

import (
	"time"

	"golang.org/x/sys/unix"
)

// clock is a steady clock that goes on while the machine sleeps. Trust in an epoch
// is counted by it: Go's monotonic clock stops during a suspend, and a wall clock
// can be set. Tests put their own in its place.
type clock interface {
	// Now is the time since some fixed moment of this machine.
	Now() time.Duration
}

type bootClock struct{}

func (bootClock) Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		return fallbackClock()
	}
	return time.Duration(ts.Nano())
}

var processStart = time.Now()

// fallbackClock serves kernels without CLOCK_BOOTTIME.
func fallbackClock() time.Duration { return time.Since(processStart) }
