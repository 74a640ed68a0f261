package auth

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"
)

// TestA6Timing measures 2,000 interleaved failures of each kind, five minutes of
// hashing, and so runs only when POSTERN_LONG is set. The median times may differ by
// max(2 ms, 3 %). TestA6OnePathForEveryFailure shows in every run that the work is the same.
func TestA6Timing(t *testing.T) {
	if os.Getenv("POSTERN_LONG") == "" {
		return // nothing is left untested silently: see above
	}
	s := testStore(t)
	s.cost = defaultCost
	for _, name := range []string{"known", "disabled"} {
		_, err := s.AddUser(t.Context(), NewUser{Name: name, Password: "pw"})
		must(t, err)
	}
	_, err := s.AddUser(t.Context(), NewUser{Name: "nohash"})
	must(t, err)
	must(t, s.SetEnabled(t.Context(), "disabled", false, "test"))
	kinds := []struct{ kind, name, password string }{
		{"unknown", "unknown", "pw"}, {"wrong password", "known", "wrong"},
		{"disabled", "disabled", "pw"}, {"no hash", "nohash", "pw"},
	}
	a := NewAuthenticator(s, Config{})
	times := make([][]time.Duration, len(kinds))
	for range 2000 {
		if _, err := a.Verify(t.Context(), "known", "pw", at(home)); err != nil { // keeps the cache warm
			t.Fatal(err)
		}
		for i, k := range kinds {
			a.throttle = newThrottle()
			start := time.Now()
			_, err := a.Verify(t.Context(), k.name, k.password, at(home))
			times[i] = append(times[i], time.Since(start))
			if err != ErrCredentials {
				t.Fatalf("%s: %v", k.kind, err)
			}
		}
	}
	var medians []time.Duration
	report := ""
	for i, k := range kinds {
		slices.Sort(times[i])
		m := times[i][len(times[i])/2]
		medians = append(medians, m)
		report += fmt.Sprintf("%s %s; ", k.kind, m)
	}
	t.Log(report)
	least, most := slices.Min(medians), slices.Max(medians)
	if most-least > max(2*time.Millisecond, least*3/100) {
		t.Errorf("medians differ by %s: %s", most-least, report)
	}
}
