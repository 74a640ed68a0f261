package webhook

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"strconv"
	"time"
)

// schedule are the pauses after each failed try of an event: 75 hours. After the last try it is given up.
var schedule = []time.Duration{
	5 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute, 2 * time.Hour, 5 * time.Hour, 10 * time.Hour, 14 * time.Hour, 20 * time.Hour, 24 * time.Hour,
}

const (
	keptFor       = 96 * time.Hour // what an active webhook has not had is kept, and then given up
	mostWait      = 24 * time.Hour // that an answer may ask for
	longest       = 27 * time.Hour // that anything waits: a time beyond is of a clock that was set back since
	failing       = 5              // tries in a row after which one event at a time is tried
	mostEndpoint  = 3              // index of the longest pause between those
	jitterPortion = 10             // a pause is longer by up to a tenth
)

// pause is how long an event waits after so many tries; last: it was the last one.
func pause(tries int) (wait time.Duration, last bool) {
	if tries > len(schedule) {
		return 0, true
	}
	wait = schedule[max(tries, 1)-1]
	return wait + rand.N(wait/jitterPortion), false
}

// rest is how long an endpoint is left alone after so many failures in a row.
func rest(failures int) time.Duration {
	if failures < failing {
		return 0
	}
	return schedule[min(failures-failing, mostEndpoint)]
}

// asked is how long the answer 429 or 503 asks to wait (RFC 9110 section 10.2.3), 0 if it does not.
func asked(r *http.Response, now time.Time) time.Duration {
	if r.StatusCode != http.StatusTooManyRequests && r.StatusCode != http.StatusServiceUnavailable {
		return 0
	}
	text := r.Header.Get("Retry-After")
	wait := mostWait
	if seconds, err := strconv.ParseUint(text, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		if seconds < uint64(mostWait/time.Second) {
			wait = time.Duration(seconds) * time.Second
		}
	} else if at, err := http.ParseTime(text); err == nil {
		wait = at.Sub(now)
	} else {
		return 0
	}
	return min(max(wait, 0), mostWait)
}
