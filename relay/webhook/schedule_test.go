package webhook

import (
	"net/http"
	"testing"
	"time"
)

// An event is tried for at least three days, and the last try is said to be.
func TestPauses(t *testing.T) {
	t.Parallel()
	sum := time.Duration(0)
	for tries := 1; ; tries++ {
		wait, last := pause(tries)
		if last {
			if tries != len(schedule)+1 {
				t.Errorf("%d tries", tries)
			}
			break
		}
		if least := schedule[tries-1]; wait < least || wait > least+least/10 {
			t.Errorf("after %d tries: %s", tries, wait)
		}
		sum += wait
	}
	if sum < 72*time.Hour || sum >= keptFor {
		t.Errorf("%s in all", sum)
	}
	for failures, want := range map[int]time.Duration{0: 0, 4: 0, 5: 5 * time.Second, 6: time.Minute, 7: 5 * time.Minute, 8: 30 * time.Minute, 1000: 30 * time.Minute} {
		if got := rest(failures); got != want {
			t.Errorf("after %d failures: %s", failures, got)
		}
	}
}

func TestRetryAfterHeader(t *testing.T) {
	t.Parallel()
	now := time.Now().Truncate(time.Second)
	for _, c := range []struct {
		status int
		text   string
		want   time.Duration
	}{
		{429, "120", 2 * time.Minute}, {503, "1", time.Second}, {503, "0", 0}, {429, "", 0}, {429, "soon", 0}, {429, "-5", 0}, {500, "120", 0}, {200, "120", 0},
		{429, "999999999999", mostWait}, {429, "18446744073709551615", mostWait}, {429, "18446744073709551616", mostWait},
		{503, now.Add(time.Hour).UTC().Format(http.TimeFormat), time.Hour}, {503, now.Add(-time.Hour).UTC().Format(http.TimeFormat), 0},
		{503, now.Add(100 * 24 * time.Hour).UTC().Format(http.TimeFormat), mostWait},
	} {
		if got := asked(&http.Response{StatusCode: c.status, Header: http.Header{"Retry-After": {c.text}}}, now); got != c.want {
			t.Errorf("%d %q: %s, want %s", c.status, c.text, got, c.want)
		}
	}
}
