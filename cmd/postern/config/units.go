package config

import (
	"fmt"
	"strings"
	"time"

	"postern/internal/units"
)

// size is a number of octets, written "26214400", "25MB" (10^6) or "25MiB" (2^20).
type size int64

func ParseSize(s string) (size, error) {
	n, err := units.ParseOctets(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		return 0, fmt.Errorf("%q is not a size: write octets, or a number with KiB, MiB, GiB, KB, MB or GB", s)
	}
	return size(n), nil
}

// UnmarshalText reads a size in the configuration file.
func (s *size) UnmarshalText(text []byte) error {
	v, err := ParseSize(string(text))
	*s = v
	return err
}

// Duration is a span of time, written "90s", "15m", "4h" or "5d".
type Duration time.Duration

func parseDuration(s string) (Duration, error) {
	d, err := units.ParseSpan(s)
	if err != nil {
		return 0, fmt.Errorf("%q is not a duration: write a number with s, m, h or d", s)
	}
	return Duration(d), nil
}

// UnmarshalText reads a duration in the configuration file.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := parseDuration(string(text))
	*d = v
	return err
}
