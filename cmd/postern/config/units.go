package config

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

// size is a number of octets, written "26214400", "25MB" (10^6) or "25MiB" (2^20).
type size int64

var sizeUnits = []struct {
	suffix string
	octets int64
}{
	{"KiB", 1 << 10}, {"MiB", 1 << 20}, {"GiB", 1 << 30}, {"TiB", 1 << 40},
	{"kB", 1e3}, {"KB", 1e3}, {"MB", 1e6}, {"GB", 1e9}, {"TB", 1e12}, {"B", 1},
}

func ParseSize(s string) (size, error) {
	digits, unit := strings.TrimSpace(s), int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(digits, u.suffix); ok {
			digits, unit = strings.TrimSpace(rest), u.octets
			break
		}
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("%q is no size: write octets, or a number with KiB, MiB, GiB, KB, MB or GB", s)
	}
	return size(n * unit), nil
}

// UnmarshalText reads a size in the configuration file.
func (s *size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	*s = v
	return err
}

// Duration is a span of time, written "90s", "15m", "4h" or "5d".
type Duration time.Duration

func ParseDuration(s string) (Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseFloat(days, 64)
		if err == nil && n >= 0 && n <= 36500 {
			return Duration(n * 24 * float64(time.Hour)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is no duration: write a number with s, m, h or d", s)
	}
	return Duration(d), nil
}

// UnmarshalText reads a duration in the configuration file.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := ParseDuration(string(text))
	*d = v
	return err
}
