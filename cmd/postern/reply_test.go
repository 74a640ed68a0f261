package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/internal/smtptest"
)

// A spent quota is no longer a bounce once the upstream has its preset; an admin's row says
// otherwise again. The node follows each change by itself, within two seconds: what was sent
// before it did has the earlier outcome.
func TestP15UpstreamReplies(t *testing.T) {
	t.Parallel()
	s := newAdminShell(t)
	s.must(t, "echo 'a good password' | postern user add alice@example.com --password-stdin")
	s.next.On(smtptest.PhaseDot, smtptest.Always(smtptest.Reply("550 5.4.5 Daily user sending limit exceeded")))
	became := func(name, want string) (to string) {
		t.Helper()
		for end := time.Now().Add(patience); ; {
			to = fmt.Sprintf("%s.%d@example.net", name, time.Now().UnixMicro())
			s.submit(t, []string{"alice@example.com", "a good password", "alice@example.com", "to", to})
			trace := ""
			for next := time.Now().Add(time.Second); time.Now().Before(next); time.Sleep(20 * time.Millisecond) {
				if trace = s.must(t, "postern trace "+to); strings.Contains(trace, want) {
					return to
				}
			}
			if time.Now().After(end) {
				t.Fatalf("not %q in time:\n%s", want, trace)
			}
		}
	}
	became("one", " failed ")
	s.must(t, "postern upstream set out --preset google")
	became("two", " deferred (account) ")
	s.must(t, "postern upstream reply add out --code 550 --enhanced 5.4.5 --result never --scope message")
	became("three", " failed ")
	s.must(t, "postern upstream pause out")
	to := became("four", "451 4.3.2 upstream out is paused")
	s.next.On(smtptest.PhaseDot, nil)
	s.must(t, "postern upstream resume out && postern queue retry --all")
	s.traced(t, to, func(trace string) bool { return strings.Contains(trace, " delivered ") })
}
