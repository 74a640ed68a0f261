package maillog

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"postern/internal/logtest"
)

// TestM6Repeats: what comes again and again is one line, and a minute after it a count;
// networks and users are told apart, and accepted mail is never left out.
func TestM6Repeats(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out := &logtest.Lines{}
		l := New(out.Logger())
		const tries = 1000
		neighbour := netip.MustParseAddrPort("[2001:db8::2]:9")
		for n := range tries {
			l.Auth(AuthEvent{User: fmt.Sprint(n), Client: client, Reason: "malformed"})
			l.Auth(AuthEvent{User: fmt.Sprint(n), Client: remote, Reason: "credentials"})
			l.Auth(AuthEvent{User: fmt.Sprint(n), Client: neighbour, Reason: "credentials"})
			l.Auth(AuthEvent{User: "alice", Client: client, OK: true})
			l.Refused(Refusal{User: "alice", Stage: "rcpt", Reply: later})
			l.Refused(Refusal{User: "bob", Stage: "dot", Reply: later})
			l.Accepted(Accept{ID: "id", User: "alice"})
			if allowed := l.Allow("other", client); allowed != (n == 0) {
				t.Errorf("try %d: %t", n, allowed)
			}
		}
		for text, want := range map[string]int{
			`"reason":"malformed"`: strangers.lines, `"reason":"credentials"`: guesses.lines, `"ok":true`: users.lines,
			`"stage":"rcpt"`: users.lines, `"stage":"dot"`: users.lines, `"accepted"`: tries, `"repeated"`: 0,
		} {
			if got := out.Count(text); got != want {
				t.Errorf("%d lines with %s, want %d", got, text, want)
			}
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		for _, want := range []string{
			`"what":"auth malformed","network":"192.0.2.7/32","more":999}`,
			`"what":"auth credentials","network":"2001:db8::/64","more":1980}`,
			`"what":"auth","user":"alice","more":900}`, `"what":"refused rcpt","user":"alice","more":900}`,
			`"what":"refused dot","user":"bob","more":900}`, `"what":"other","network":"192.0.2.7/32","more":999}`,
		} {
			if out.Count(want) != 1 {
				t.Errorf("no line with %s", want)
			}
		}
		if n := out.Count(`"repeated"`); n != 6 {
			t.Errorf("%d counts, want 6:\n%s", n, out)
		}
		if !l.Allow("other", client) { // another minute
			t.Error("the next minute's first line is left out")
		}
		l.Flush()
		if out.Count(`"repeated"`) != 6 {
			t.Error("a count of nothing")
		}
	})
}

// TestM6RepeatsOfMany: the lines of many networks are counted together, and take none from
// users.
func TestM6RepeatsOfMany(t *testing.T) {
	t.Parallel()
	l, out := recorder(slog.LevelInfo)
	addr := netip.MustParseAddr("10.0.0.0")
	for range 5 * strangers.apart {
		l.Auth(AuthEvent{Client: netip.AddrPortFrom(addr, 1), Reason: "busy"})
		addr = addr.Next()
	}
	if n := len(l.repeats.came[strangers]); n != strangers.apart+1 {
		t.Errorf("%d are told apart, want %d and the others", n, strangers.apart)
	}
	l.Refused(Refusal{User: "alice", Stage: "rcpt", Reply: later})
	l.Flush()
	if n := strings.Count(out.String(), `"msg":"auth"`); n != strangers.apart+1 {
		t.Errorf("%d lines, want %d", n, strangers.apart+1)
	}
	if !strings.HasSuffix(out.String(), fmt.Sprintf("{\"level\":\"INFO\",\"msg\":\"repeated\",\"what\":\"auth busy\",\"more\":%d}\n", 4*strangers.apart-1)) ||
		!strings.Contains(out.String(), `"user":"alice"`) {
		t.Errorf("at the end %.2000s", out.String()[max(0, out.Len()-2000):])
	}
}

// TestM6NobodyIsHidden: other lines from many networks do not hide guesses from
// another one, a network is not hidden by its own guesses at the pace that is judged, and
// however many users log in in a minute, each has a line.
func TestM6NobodyIsHidden(t *testing.T) {
	t.Parallel()
	l, out := recorder(slog.LevelInfo)
	addr := netip.MustParseAddr("10.0.0.0")
	for range 5 * strangers.apart {
		addr = addr.Next()
		l.Auth(AuthEvent{Client: netip.AddrPortFrom(addr, 1), Reason: "malformed"})
		l.Auth(AuthEvent{Client: netip.AddrPortFrom(addr, 1), Reason: "busy"})
	}
	const perMinute = 15 // auth: the longest distance is 4 s
	for n := range perMinute {
		l.Auth(AuthEvent{User: fmt.Sprintf("victim%d", n), Client: remote, Reason: "credentials"})
	}
	const many = 5000
	for n := range many {
		l.Auth(AuthEvent{User: fmt.Sprintf("user%d", n), Client: client, OK: true})
	}
	if n := strings.Count(out.String(), `"user":"victim`); n != perMinute {
		t.Errorf("%d of %d guesses have a line", n, perMinute)
	}
	if n := strings.Count(out.String(), `"user":"user`); n != many {
		t.Errorf("%d of %d users have a line", n, many)
	}
}
