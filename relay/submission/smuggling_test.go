package submission

import (
	"fmt"
	"strings"
	"testing"
)

// smuggled stands behind each payload. It ends with the true end of the data, and
// a NOOP that is only answered when the session is in step.
const smuggled = "MAIL FROM:<e@a>\r\nRCPT TO:<v@b>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\nNOOP\r\n"

// payloads are ends of data that are none. Clean ones are text like any other.
var payloads = []struct {
	text  string
	clean bool
}{
	{text: "\n.\n"}, {text: "\r.\r"}, {text: "\r.\n"}, {text: "\n.\r"}, {text: "\n.\r\n"},
	{text: "\r\n.\n"}, {text: "\r.\r\n"}, {text: "\r\n.\r"}, {text: "\r\n\x00.\r\n"}, {text: "\r\n.\x00\r\n"},
	{text: "\r\n.\r\r\n"}, {text: "\r\r\n.\r\r\n"}, {text: "\r\r\n.\r\n"},
	{text: "\r\n. \r\n", clean: true}, {text: "\r\n.\t\r\n", clean: true},
	{text: "\v.\v", clean: true}, {text: "\f.\f", clean: true}, {text: "\x85.\x85", clean: true},
	{text: ".\r"}, {text: ".\n"},
}

// TestA1Smuggling sends every payload in the middle of a message and as its first
// octets, split at every octet into two TLS records, and whole octet by octet.
func TestA1Smuggling(t *testing.T) {
	t.Parallel()
	for _, listener := range []string{"strict", "normalizing"} {
		ts := startServer(t, func(cfg *Config) {
			cfg.Limits.Commands = 1 << 30
			cfg.Listeners[1].NormalizeBareLF = listener == "normalizing"
		})
		for _, p := range payloads {
			for _, before := range []string{"", "From: alice@example.com\r\n\r\ntext"} {
				t.Run(fmt.Sprintf("%s/%q/%q", listener, before, p.text), func(t *testing.T) {
					data := before + p.text + smuggled
					// Without From no message is taken, whatever else it is.
					clean := before != "" && (p.clean || listener == "normalizing" && isBareLFOnly(p.text))
					c := ts.login(t)
					for at := 1; at < len(data); at++ {
						smuggle(t, ts, c, []string{data[:at], data[at:]}, clean)
					}
					smuggle(t, ts, c, strings.Split(data, ""), clean)
				})
			}
		}
	}
}

// isBareLFOnly reports that a bare LF is all that is wrong with a payload.
func isBareLFOnly(s string) bool {
	return !strings.Contains(strings.ReplaceAll(s, "\r\n", ""), "\r") && !strings.Contains(s, "\x00")
}

// smuggle sends one message in pieces and wants one reply to it, and one message in
// the queue exactly when it is clean.
func smuggle(t *testing.T, ts *testServer, c *client, pieces []string, clean bool) {
	t.Helper()
	before := ts.queue.len()
	c.envelope()
	for _, p := range pieces {
		c.send(p)
	}
	want, queued := 554, 0
	if clean {
		want, queued = 250, 1
	}
	c.expect(want)
	c.expect(250) // NOOP
	if n := ts.queue.len() - before; n != queued {
		t.Fatalf("%d messages were queued by %q, want %d", n, pieces, queued)
	}
	if clean {
		if last := ts.queue.all()[before]; last.Sender.String() != "alice@example.com" || !strings.Contains(last.Body, "RCPT TO:<v@b>") {
			t.Fatalf("the message is not the one that was sent: %q", last.Body)
		}
	}
}

// TestA1TrueEndSplit is the positive control: the true end, however it arrives.
func TestA1TrueEndSplit(t *testing.T) {
	t.Parallel()
	ts := startServer(t)
	c := ts.login(t)
	data := smallMessage + ".\r\nNOOP\r\n"
	for at := len(smallMessage) - 2; at < len(data); at++ {
		smuggle2(t, ts, c, data[:at], data[at:])
	}
}

func smuggle2(t *testing.T, ts *testServer, c *client, first, second string) {
	t.Helper()
	before := ts.queue.len()
	c.envelope()
	c.send(first)
	c.send(second)
	c.expect(250)
	c.expect(250)
	all := ts.queue.all()
	if len(all) != before+1 || !strings.HasSuffix(all[before].Body, "\r\n\r\nHello\r\n") {
		t.Fatalf("split %q | %q: not the message that was sent", first, second)
	}
}
