package budget

import (
	"strings"
	"testing"
	"time"
)

func limit(t testing.TB, setting string) Limit {
	t.Helper()
	limits, err := Parse(setting)
	if err != nil || len(limits) != 1 {
		t.Fatalf("%q: %v, %v", setting, limits, err)
	}
	return limits[0]
}

func text(limits []Limit) string {
	var parts []string
	for _, l := range limits {
		parts = append(parts, l.String())
	}
	return strings.Join(parts, ", ")
}

func TestParse(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]string{
		"": "", "none": "", // no limits
		"messages 30/m, recipients 10000/d, sessions 3": "messages 30/m, recipients 10000/d, sessions 3",
		"messages 30/m,1000/d,recipients 14/s":          "messages 30/m, messages 1000/d, recipients 14/s",
		"recipients 10000/d@Europe/Berlin":              "recipients 10000/d@Europe/Berlin",
		"messages 5/d, 7/d@UTC":                         "messages 5/d, messages 7/d@UTC",
	} {
		limits, err := Parse(setting)
		if got := text(limits); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", setting, got, err, want)
		}
	}
	for _, setting := range []string{"30/m", "bytes 1GB/d", "messages", "messages 30", "messages 0/m", "sessions 3/m", "sessions 0",
		"messages 30/m, 40/m", "messages 30/m@UTC", "messages 30/2d@UTC", "messages 30/d@x'y", "messages 30/d@", "messages -1/m", "none, sessions 1",
		"sessions 9223372036854775807"} {
		if limits, err := Parse(setting); err == nil {
			t.Errorf("%q is taken for %q", setting, text(limits))
		}
	}
	if got := Fits("messages 1/m, recipients 50/m", 100); got != 50 {
		t.Errorf("a message may have %d recipients, want 50", got)
	}
}

// TestLine: each that waits has a unit of its own, in order, also across a new forecast.
func TestLine(t *testing.T) {
	t.Parallel()
	l := limit(t, "messages 10/m")
	forecastAt := func(at time.Duration) *forecast {
		return newForecast(at, 0, []float64{110, 130}, []int64{5, 5}, l)
	}
	f := forecastAt(100 * time.Second)
	if f.period != 61*time.Second {
		t.Fatalf("a unit comes back after %v", f.period)
	}
	var stands line
	var at []time.Duration
	for i := range 17 {
		if i == 12 {
			f = forecastAt(101 * time.Second)
		}
		stands = stands.join(f, 1)
		at = append(at, stands.end/time.Second)
	}
	for i, want := range []time.Duration{110, 110, 110, 110, 110, 130, 130, 130, 130, 130, 171, 171, 171, 171, 171, 191, 191} {
		if at[i] != want {
			t.Fatalf("turns %v: that of %d should be %d", at, i, want)
		}
	}
	if got := (line{}).join(f, 25).end; got != 232*time.Second {
		t.Errorf("more than fits into a window: %v", got)
	}
	if got := (line{}).join(f, 0.5).join(f, 5).end; got != 130*time.Second {
		t.Errorf("shares of units: %v", got)
	}
	for at, want := range map[time.Duration]time.Duration{110: 110, 129: 110, 131: 130, 172: 171, 100: 100} {
		if got := f.before(at * time.Second); got != want*time.Second {
			t.Errorf("the turn until %v: %v, want %v", at, got, want)
		}
	}
	free := newForecast(100*time.Second, 4, []float64{110}, []int64{3}, l)
	if got := (line{}).join(free, 4).end; got != 100*time.Second {
		t.Errorf("free units: %v", got)
	}
	if got := (line{}).join(free, 10).end; got != 161*time.Second {
		t.Errorf("units that the database does not know of: %v", got)
	}
}

// TestPeriod: a unit comes back after its window and a bucket.
func TestPeriod(t *testing.T) {
	t.Parallel()
	for setting, want := range map[string]time.Duration{
		"messages 1/s": 1100 * time.Millisecond, "messages 1/m": 61 * time.Second, "messages 1/15s": 15250 * time.Millisecond,
		"messages 1/d": 24*time.Hour + 24*time.Minute, "messages 1/d@UTC": 24 * time.Hour,
	} {
		if got := newForecast(0, 0, nil, nil, limit(t, setting)).period; got != want {
			t.Errorf("%s: %v, want %v", setting, got, want)
		}
	}
}
