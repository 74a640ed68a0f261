package main

import (
	"strings"
	"testing"
	"time"

	"postern/internal/smtptest"
)

// A spent quota is no longer a bounce once the upstream has its preset; an admin's row says
// otherwise again. The node follows each change by itself, within two seconds.
func TestP15UpstreamReplies(t *testing.T) {
	t.Parallel()
	s := newAdminShell(t)
	s.must(t, "echo 'a good password' | postern user add alice@example.com --password-stdin")
	s.next.On(smtptest.PhaseDot, smtptest.Always(smtptest.Reply("550 5.4.5 Daily user sending limit exceeded")))
	became := func(to, want string) {
		t.Helper()
		s.submit(t, []string{"alice@example.com", "a good password", "alice@example.com", "to", to})
		s.traced(t, to, func(trace string) bool { return strings.Contains(trace, want) })
	}
	became("one@example.net", " failed ")
	s.must(t, "postern upstream set out --preset google")
	s.follow()
	became("two@example.net", " deferred (account) ")
	s.must(t, "postern upstream reply add out --code 550 --enhanced 5.4.5 --result never --scope message")
	s.follow()
	became("three@example.net", " failed ")
	s.must(t, "postern upstream pause out")
	s.follow()
	became("four@example.net", "451 4.3.2 upstream out is paused")
	s.next.On(smtptest.PhaseDot, nil)
	s.must(t, "postern upstream resume out && postern queue retry --all")
	s.next.WaitMessages(t, 1)
	s.traced(t, "four@example.net", func(trace string) bool { return strings.Contains(trace, " delivered ") })
}

// follow gives the node the time that it has to notice a change.
func (s *adminShell) follow() { time.Sleep(5 * time.Second / 2) }
