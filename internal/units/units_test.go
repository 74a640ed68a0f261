package units

import (
	"testing"
	"time"
)

// An amount that is written and read again is the same.
func TestBothWays(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int64{"0": 0, "1025": 1025, "1KB": 1e3, "3KiB": 3 << 10, "1500MB": 15e8, "2TiB": 2 << 40} {
		n, err := ParseOctets(text)
		if err != nil || n != want || FormatOctets(n) != text {
			t.Errorf("%q is %d, %v, and written %q", text, n, err, FormatOctets(n))
		}
	}
	for text, want := range map[string]time.Duration{"0s": 0, "90s": 90 * time.Second, "11m": 11 * time.Minute, "36h": 36 * time.Hour, "30d": 720 * time.Hour} {
		d, err := ParseSpan(text)
		if err != nil || d != want || FormatSpan(d) != text {
			t.Errorf("%q is %s, %v, and written %q", text, d, err, FormatSpan(d))
		}
	}
	if n, err := ParseOctets("7kib"); n != 7<<10 || err != nil {
		t.Errorf("the case of a unit counts: %d, %v", n, err)
	}
}
