package main

import (
	"slices"
	"strings"
	"testing"
)

// A recipient whose local part is no Dot-string, the whole way: it is quoted on the wire,
// and the shell finds it however it is written.
func TestDottedRecipient(t *testing.T) {
	t.Parallel()
	s := newAdminShell(t)
	s.must(t, "echo a-good-password | postern user add ann@example.com --password-stdin")
	s.send(t, strings.Fields("ann@example.com a-good-password ann@example.com to foo..bar@docomo.example foo.@slow.example"))
	if m := s.next.WaitMessages(t, 1)[0]; !slices.Equal(m.To(), []string{`"foo..bar"@docomo.example`}) {
		t.Errorf("the next hop has it for %q", m.To())
	}
	for line, want := range map[string]string{
		"postern trace foo..bar@docomo.example":                                                                     `"foo..bar"@docomo.example  delivered  out`,
		`postern trace '"foo..bar"@docomo.example'`:                                                                 `"foo..bar"@docomo.example  delivered  out`,
		`postern trace '<"foo..bar"@DOCOMO.example>'`:                                                               `"foo..bar"@docomo.example  delivered  out`,
		"postern queue list --recipient foo.@slow.example":                                                          `"foo."@slow.example`,
		`postern queue list --recipient '"foo."@slow.example'`:                                                      `"foo."@slow.example`,
		"postern queue list --domain slow.example":                                                                  `"foo."@slow.example`,
		`postern queue retry --dry-run --recipient '<foo.@slow.example>'`:                                           "1 waiting recipient would be due now",
		"postern explain --user ann@example.com --from ann@example.com --to .@x":                                    "\n\".\"@x ",
		`postern explain --user ann@example.com --from ann@example.com --to a..b@x --to '"a..b"@X' | grep -ci '@x'`: "1\n",
	} {
		if out := s.must(t, line); !strings.Contains(out, want) {
			t.Errorf("$ %s\n%s\nwanted %s", line, out, want)
		}
	}
	if out, err := s.command(t, "postern explain --user ann@example.com --from ann..b@example.com --to a@b").CombinedOutput(); err == nil || !strings.Contains(string(out), "--from: ") {
		t.Errorf("a sender with two dots: %v, %s", err, out)
	}
}
