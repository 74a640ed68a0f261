// Package units reads and writes octets and spans of time as people write them.
package units

import (
	"math"
	"strconv"
	"strings"
	"time"
)

// sizes are the units of octets, the largest first.
var sizes = [...]struct {
	name string
	of   int64
}{
	{"TiB", 1 << 40}, {"TB", 1e12}, {"GiB", 1 << 30}, {"GB", 1e9}, {"MiB", 1 << 20}, {"MB", 1e6},
	{"KiB", 1 << 10}, {"KB", 1e3}, {"B", 1},
}

// ParseOctets reads "26214400", "25MB" (10^6) or "25MiB" (2^20), whatever the case of the
// unit. The error is strconv.ErrSyntax or strconv.ErrRange, possibly wrapped.
func ParseOctets(s string) (int64, error) {
	unit := int64(1)
	for _, u := range sizes {
		if at := len(s) - len(u.name); at >= 0 && strings.EqualFold(s[at:], u.name) {
			s, unit = s[:at], u.of
			break
		}
	}
	n, err := ParseCount(s)
	if err == nil && n > math.MaxInt64/unit {
		err = strconv.ErrRange
	}
	return n * unit, err
}

// FormatOctets writes octets in the largest unit of which they are a multiple.
func FormatOctets(n int64) string {
	for _, u := range sizes {
		if n > 0 && n%u.of == 0 && u.of > 1 {
			return strconv.FormatInt(n/u.of, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10)
}

// RoughOctets writes octets for people, with one digit behind the point: "1.5MB".
func RoughOctets(n int64) string {
	for _, u := range sizes {
		if strings.Contains(u.name, "i") || n < u.of {
			continue
		}
		return strings.TrimSuffix(strconv.FormatFloat(float64(n)/float64(u.of), 'f', 1, 64), ".0") + u.name
	}
	return "0B"
}

// ParseCount reads a number that is nothing but digits. The errors are ParseOctets'.
func ParseCount(s string) (int64, error) {
	if s == "" || strings.Trim(s, "0123456789") != "" {
		return 0, strconv.ErrSyntax
	}
	return strconv.ParseInt(s, 10, 64)
}

const day = 24 * time.Hour

// ParseSpan reads "90s", "1h30m" or "5d", of up to a hundred years; it is not negative.
func ParseSpan(s string) (time.Duration, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.ParseFloat(days, 64); err == nil && n >= 0 && n <= 36500 {
			return time.Duration(n * float64(day)), nil
		}
	}
	d, err := time.ParseDuration(s)
	if err == nil && d < 0 {
		err = strconv.ErrRange
	}
	return d, err
}

// FormatSpan writes whole seconds in the largest unit that divides them: "1m", "30d".
func FormatSpan(d time.Duration) string {
	for _, u := range [...]struct {
		name string
		of   time.Duration
	}{{"d", day}, {"h", time.Hour}, {"m", time.Minute}} {
		if d >= u.of && d%u.of == 0 {
			return strconv.FormatInt(int64(d/u.of), 10) + u.name
		}
	}
	return strconv.FormatInt(int64(d/time.Second), 10) + "s"
}
