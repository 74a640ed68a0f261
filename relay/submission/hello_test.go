package submission

import (
	"strings"
	"testing"
	"unicode/utf8"
)

// P09: a computer's name in any charset, a device without one, words: the message is
// taken, and the name is printable wherever it goes.
func TestP09AnyHello(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		sent  string // behind the verb
		hello string // as it is stored and logged
		trace string // in Received
	}{
		"cp1251":          {" \xc1\xf3\xf5\xe3\xe0\xeb\xf2\xe5\xf0-\xcf\xca", `\xc1\xf3\xf5\xe3\xe0\xeb\xf2\xe5\xf0-\xcf\xca`, "unknown"},
		"Latin-1":         {" B\xfcro-PC", `B\xfcro-PC`, "unknown"},
		"GBK":             {" \xce\xd2\xb5\xc4\xb5\xe7\xc4\xd4", `\xce\xd2\xb5\xc4\xb5\xe7\xc4\xd4`, "unknown"},
		"GBK, odd octets": {" \x81\x5c\x81\x28-PC", `\x81\\x81(-PC`, "unknown"},
		"UTF-8":           {" Бухгалтер-ПК", "Бухгалтер-ПК", "unknown"},
		"UTF-8 domain":    {" bücher.example", "bücher.example", "unknown"},
		"C1 in UTF-8":     {" a\u0085b\u009bc", `a\u{85}b\u{9b}c`, "unknown"},
		"bidi and BOM":    {" a\u202eb\ufeff", `a\u{202e}b\u{feff}`, "unknown"},
		"underscore":      {" DESKTOP_7", "DESKTOP_7", "unknown"},
		"words":           {" Alice's MacBook  (2)", "Alice's MacBook  (2)", "unknown"},
		"comment":         {" x (y) by z; id=1", "x (y) by z; id=1", "unknown"},
		"nothing":         {"", "", "unknown"},
		"spaces":          {"   ", "", "unknown"},
		"address":         {" 192.0.2.1", "192.0.2.1", "192.0.2.1"},
		"literal":         {" [192.0.2.1]", "[192.0.2.1]", "[192.0.2.1]"},
		"IPv6 literal":    {" [IPv6:2001:db8::1]", "[IPv6:2001:db8::1]", "[IPv6:2001:db8::1]"},
		"bare IPv6":       {" [fe80::1%eth0]", "[fe80::1%eth0]", "unknown"},
		"half a literal":  {" [192.0.2.1", "[192.0.2.1", "unknown"},
		"angle brackets":  {" <host.example>", "<host.example>", "unknown"},
		"final dot":       {" host.example.", "host.example.", "unknown"},
		"host":            {" Host.example", "Host.example", "Host.example"},
		"long":            {" " + strings.Repeat("ab", 200), strings.Repeat("ab", 127) + "a", "unknown"},
		"long, 8-bit":     {" " + strings.Repeat("\xff", 200), strings.Repeat(`\xff`, 63), "unknown"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t)
			c := ts.dialTLS(t)
			c.cmd(250, "HELO"+tt.sent)
			c.cmd(250, "EHLO"+tt.sent)
			c.cmd(235, "AUTH PLAIN "+plain("alice@example.com", "secret"))
			c.envelope()
			c.send(smallMessage + ".\r\n")
			c.expect(250)
			m := ts.queue.all()[0]
			if m.ClientHello != tt.hello {
				t.Errorf("stored as %q, want %q", m.ClientHello, tt.hello)
			}
			if want := "Received: from " + tt.trace + " ([127.0.0.1])\r\n\tby "; !strings.HasPrefix(m.Body, want) {
				t.Errorf("body %q, want %q", m.Body, want)
			}
		})
	}
}

// A13: whatever octets come, a name is a bounded line of printable UTF-8.
func TestA13HelloIsPrintable(t *testing.T) {
	t.Parallel()
	for a := range 256 {
		for b := range 256 {
			got := printableHello("x" + string([]byte{byte(a), byte(b)}) + strings.Repeat("y", 260))
			if !utf8.ValidString(got) || len(got) > maxHello || strings.ContainsFunc(got, func(r rune) bool { return r < ' ' || r == 0x7F || r >= 0x80 && r < 0xA0 }) {
				t.Fatalf("%#x %#x: %q", a, b, got)
			}
		}
	}
}
