package budget

import (
	"testing"
	"time"
)

func limit(t testing.TB, text string) Limit {
	t.Helper()
	limits, err := Parse(text)
	if err != nil || len(limits) != 1 {
		t.Fatalf("%q: %v, %v", text, limits, err)
	}
	return limits[0]
}

func TestParse(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"": "", "none": "", // no limits
		"messages 30/m, recipients 10000/d, sessions 3": "messages 30/m, recipients 10000/d, sessions 3",
		"messages 30/m,1000/d,recipients 14/s":          "messages 30/m, messages 1000/d, recipients 14/s",
		"recipients 10000/d@Europe/Berlin":              "recipients 10000/d@Europe/Berlin",
		"messages 5/d, 7/d@UTC":                         "messages 5/d, messages 7/d@UTC",
	} {
		limits, err := Parse(text)
		if got := Text(limits); err != nil || got != want {
			t.Errorf("%q: %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"30/m", "bytes 1GB/d", "messages", "messages 30", "messages 0/m", "sessions 3/m", "sessions 0",
		"messages 30/m, 40/m", "messages 30/m@UTC", "messages 30/2d@UTC", "messages 30/d@x'y", "messages 30/d@", "messages -1/m", "none, sessions 1"} {
		if limits, err := Parse(text); err == nil {
			t.Errorf("%q is taken for %q", text, Text(limits))
		}
	}
	if got := Fits("messages 1/m, recipients 50/m", 100); got != 50 {
		t.Errorf("a message may have %d recipients, want 50", got)
	}
}

// TestForecast: when units are there, and how many are before, contradict each other nowhere.
func TestForecast(t *testing.T) {
	t.Parallel()
	l := limit(t, "messages 10/m")
	f := newForecast(100*time.Second, 2, []freed{{110 * time.Second, 5}, {130 * time.Second, 3}}, l)
	if f.period != 62*time.Second {
		t.Fatalf("a unit comes back after %v", f.period)
	}
	for _, test := range []struct {
		x    int64
		want time.Duration // seconds
	}{{1, 100}, {2, 100}, {3, 110}, {7, 110}, {8, 130}, {10, 130}, {11, 162}, {13, 172}, {20, 192}, {21, 224}} {
		if got := f.when(test.x); got != test.want*time.Second {
			t.Errorf("unit %d at %v, want %v", test.x, got, test.want*time.Second)
		}
	}
	for x := int64(1); x < 100; x++ {
		at := f.when(x)
		if before, by := f.before(at), f.before(at+1); before >= x || by < x {
			t.Errorf("unit %d at %v: %d are before, %d by then", x, at, before, by)
		}
	}
}

// TestLine: each that waits has a unit of its own, in order, also across a new forecast.
func TestLine(t *testing.T) {
	t.Parallel()
	l := limit(t, "messages 10/m")
	f := newForecast(100*time.Second, 0, []freed{{110 * time.Second, 5}, {130 * time.Second, 5}}, l)
	var stands line
	var at []time.Duration
	for range 12 {
		at = append(at, stands.join(f, 1, 0)/time.Second)
	}
	f = newForecast(101*time.Second, 0, []freed{{110 * time.Second, 5}, {130 * time.Second, 5}}, l)
	for range 5 {
		at = append(at, stands.join(f, 1, 0)/time.Second)
	}
	for i, want := range []time.Duration{110, 110, 110, 110, 110, 130, 130, 130, 130, 130, 172, 172, 172, 172, 172, 192, 192} {
		if at[i] != want {
			t.Fatalf("turns %v: that of %d should be %d", at, i, want)
		}
	}
	if got := new(line).join(f, 1, 7); got != 130*time.Second {
		t.Errorf("behind 7 others: %v", got)
	}
	if got := new(line).join(f, 25, 0); got != f.when(25) {
		t.Errorf("more than fits into a window: %v", got)
	}
}

func TestPeriod(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]time.Duration{
		"messages 1/s": 1500 * time.Millisecond, "messages 1/m": 62 * time.Second, "messages 1/15s": 15500 * time.Millisecond,
		"messages 1/d": 24*time.Hour + 48*time.Minute, "messages 1/d@UTC": 24 * time.Hour,
	} {
		if got := period(limit(t, text)); got != want {
			t.Errorf("%s: %v, want %v", text, got, want)
		}
	}
}
