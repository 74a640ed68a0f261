package relay_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/rig"
)

// TestEndToEnd accounts for a mixed load without faults: small and large messages
// to one and to many recipients, over MX of several kinds.
func TestEndToEnd(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	dns := &dnstest.Zones{}
	const here, nobody = "127.0.0.1", "127.0.0.9"
	dns.AddHost("mx.test", here)
	dns.AddHost("down.test", nobody)
	dns.AddHost("implicit.test", here) // no MX: the domain itself (RFC 5321 section 5.1)
	dns.AddMX("plain.test", 10, "mx.test")
	dns.AddMX("backup.test", 10, "down.test")
	dns.AddMX("backup.test", 20, "mx.test")
	dns.AddMX("null.test", 0, ".") // RFC 7505
	dns.AddMX(rig.Domain, 10, "mx.test")
	r.Postern("", "route", "add", "--via", "mx")
	r.Postern("", "credential", "set", "1", "--suppressed", "ignore") // the load sends to those who bounced again
	node := r.Node(rig.NodeConfig{Name: "solo", Extra: fmt.Sprintf(
		"[delivery]\nmx_port = %d\nallow_private_mx = true\n[dns]\nservers = [%q]\n", sink.Port(), dns.Serve(t))})

	load := newLoad(t, r, node)
	load.Each, load.Pace, load.Shape = 25, 0, mixedMail
	load.Start()
	load.Wait()
	tally := settle(t, r, load, sink, node)
	if all := load.Conns * load.Each; tally.Accepted != all {
		t.Errorf("%d of %d messages were accepted: %s", tally.Accepted, all, load.Ledger)
	}
	if tally.Second > 0 || tally.Fenced > 0 {
		t.Errorf("%d second copies and %d fenced outcomes without a fault", tally.Second, tally.Fenced)
	}
	wantNotices(t, load.Ledger, sink)
}

// mixedMail is 1 KB to 2 MB, to 1 to 60 recipients, a few of whom do not exist.
func mixedMail(random *rand.Rand) rig.Shape {
	shape := rig.Shape{From: fmt.Sprintf("sender%d@%s", random.IntN(50), rig.Domain), Size: 1<<10 + random.IntN(20<<10)}
	switch random.IntN(20) {
	case 0:
		shape.Size = 1<<20 + random.IntN(1<<20)
	case 1, 2:
		shape.Size = 100 << 10
	}
	recipients := 1
	if random.IntN(4) == 0 {
		recipients = 2 + random.IntN(59)
	}
	for n := range recipients {
		name, domain := "rcpt", []string{"plain.test", "backup.test", "implicit.test"}[random.IntN(3)]
		switch random.IntN(30) {
		case 0:
			name = rig.RefusedLocal + "body"
		case 1:
			domain = "null.test"
		case 2:
			domain = "missing.test"
		}
		shape.To = append(shape.To, fmt.Sprintf("%s%d@%s", name, n, domain))
	}
	return shape
}

// wantNotices wants a notice about each recipient that cannot have the message, and
// about no other.
func wantNotices(t *testing.T, ledger *rig.Ledger, sink *rig.Sink) {
	t.Helper()
	told := map[string][]string{}
	for _, m := range sink.Received() {
		if m.Bounce != nil {
			told[m.Bounce.About] = append(told[m.Bounce.About], m.Bounce.Failed...)
		}
	}
	for _, s := range ledger.Sent() {
		var bad []string
		for _, to := range s.To {
			if strings.HasPrefix(to, rig.RefusedLocal) || strings.HasSuffix(to, "@null.test") || strings.HasSuffix(to, "@missing.test") {
				bad = append(bad, to)
			}
		}
		slices.Sort(bad)
		slices.Sort(told[s.ID])
		if !slices.Equal(bad, told[s.ID]) {
			t.Errorf("%s: notices about %v, want %v", s.ID, told[s.ID], bad)
		}
	}
}

// smuggled stands behind each payload. It ends with the true end of the data, and a
// NOOP that is only answered when the session is in step.
const smuggled = "MAIL FROM:<e@a>\r\nRCPT TO:<v@b>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\nNOOP\r\n"

// payloads are ends of data that are none. Clean ones are text like any other.
var payloads = []struct {
	text  string
	clean bool
}{
	{text: "\n.\n"}, {text: "\r.\r"}, {text: "\r.\n"}, {text: "\n.\r"}, {text: "\n.\r\n"},
	{text: "\r\n.\n"}, {text: "\r.\r\n"}, {text: "\r\n.\r"}, {text: "\r\n\x00.\r\n"}, {text: "\r\n.\x00\r\n"},
	{text: "\r\n.\r\r\n"}, {text: "\r\r\n.\r\r\n"}, {text: "\r\r\n.\r\n"}, {text: ".\r"}, {text: ".\n"},
	{text: "\r\n. \r\n", clean: true}, {text: "\r\n.\t\r\n", clean: true},
	{text: "\v.\v", clean: true}, {text: "\f.\f", clean: true}, {text: "\x85.\x85", clean: true},
}

// TestA1EndToEnd sends every payload of SMTP smuggling through the whole relay over
// TLS, in the middle of a message and as its first octets, whole, octet by octet and
// split at every octet of the payload into two TLS records: one reply, nothing
// queued, and the session in step.
func TestA1EndToEnd(t *testing.T) {
	t.Parallel()
	r := rig.New(t, false)
	sink := rig.NewSink(t, "", 0)
	r.RouteTo(sink, 10)
	node := r.Node(rig.NodeConfig{Name: "solo"})
	clean := 0
	for _, implicit := range []bool{true, false} {
		c, err := r.Dial(node, implicit)
		want(t, err)
		defer c.Close()
		want(t, c.Login(rig.User, rig.Password))
		for _, p := range payloads {
			for _, before := range []string{"", "From: " + rig.User + "\r\n\r\ntext"} {
				for _, pieces := range splits(before, p.text) {
					clean += smuggle(t, c, pieces, p.clean && before != "") // without From no message is taken
				}
			}
		}
	}
	if !sink.WaitReceived(clean) {
		t.Fatalf("%d of %d clean messages came out", len(sink.Received()), clean)
	}
	r.Drain()
	if n, err := r.Count(context.Background(), "select count(*) from message"); err != nil || n != clean {
		t.Errorf("%d messages were queued (%v), want the %d clean ones", n, err, clean)
	}
	for _, m := range sink.Received() {
		if m.From != rig.User || !slices.Equal(m.To, []string{"rcpt@dest.test"}) {
			t.Errorf("a smuggled message came out: from %q to %q", m.From, m.To)
		}
	}
}

// splits are the ways in which a message is cut into TLS records.
func splits(before, payload string) [][]string {
	data := before + payload + smuggled
	ways := [][]string{{data}, strings.Split(data, "")}
	for at := max(1, len(before)); at <= len(before)+len(payload); at++ {
		ways = append(ways, []string{data[:at], data[at:]})
	}
	return ways
}

// smuggle sends one message and returns how many of it are in the queue.
func smuggle(t *testing.T, c *rig.Client, pieces []string, clean bool) int {
	t.Helper()
	want(t, openData(c, rig.User))
	for _, piece := range pieces {
		want(t, c.Write(piece))
	}
	code, queued := 554, 0
	if clean {
		code, queued = 250, 1
	}
	if err := c.Expect("dot", code); err != nil {
		t.Fatalf("%q: %v", pieces, err)
	}
	if err := c.Expect("NOOP", 250); err != nil {
		t.Fatalf("%q: out of step: %v", pieces, err)
	}
	return queued
}
