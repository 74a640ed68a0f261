package main

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/smtptest"
)

// docs/suppression.md: its commands, in their order.
func TestSuppressionPage(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := shellOf(t, db)
	s.must(t, "postern user add printer@example.com")
	if _, err := db.Pool.Exec(t.Context(), `alter table credential alter column id restart with 12`); err != nil {
		t.Fatal(err)
	}
	s.must(t, "postern user add shop@example.com")
	said := map[string]string{}
	for _, b := range blocksOf(t, "../../docs/suppression.md") {
		if b.language != "sh" {
			continue
		}
		for line := range strings.Lines(b.text) {
			line = strings.TrimSpace(line)
			said[line] = s.must(t, line)
		}
	}
	for line, want := range map[string]string{
		"postern suppression list --user shop@example.com":                                                  "asked for no more mail",
		"postern suppression list bob@example.net":                                                          "shop@example.com",
		"postern suppression import suppressed.csv --user shop@example.com":                                 "imported 1 entry",
		"postern recipient list shop@example.com":                                                           "ceo@example.com",
		"postern recipient remove shop@example.com ceo@example.com":                                         "*@competitor.example",
		"postern credential set 12 --suppressed ignore":                                                     "changed credential 12",
		"postern suppression add '*@*.example.org' --global":                                                "for all users",
		"postern suppression add bob@example.net --user shop@example.com --reason 'asked for no more mail'": "bob@example.net is suppressed",
	} {
		if !strings.Contains(said[line], want) {
			t.Errorf("%s: %q, want %q", line, said[line], want)
		}
	}
}

// TestSuppressionImport takes 100,000 addresses in and out again.
func TestSuppressionImport(t *testing.T) {
	t.Parallel()
	s := shellOf(t, pgtest.New(t))
	s.must(t, "postern user add shop@example.com")
	const n = 100_000
	var file strings.Builder
	file.WriteString("address,reason\n")
	for i := range n {
		fmt.Fprintf(&file, "to%06d@example%d.net,left\n", i, i%100)
	}
	s.write(t, "in.csv", file.String())
	if said := s.must(t, "postern suppression import in.csv --user shop@example.com"); said != "imported 100000 entries for shop@example.com\n" {
		t.Errorf("import: %q", said)
	}
	if lines := strings.TrimSpace(s.must(t, "postern suppression export --user shop@example.com | sort -u | wc -l")); lines != fmt.Sprint(n+1) {
		t.Errorf("export: %s lines, want %d", lines, n+1)
	}
	// Again: every entry takes the place of itself.
	s.must(t, "postern suppression export --user shop@example.com >out.csv && postern suppression import out.csv --user shop@example.com")
	if lines := strings.TrimSpace(s.must(t, "postern suppression export --user shop@example.com | cmp - out.csv && wc -l <out.csv")); lines != fmt.Sprint(n+1) {
		t.Errorf("again: %q", lines)
	}
}

// TestSuppressionProgress: a terminal shows how far an import is, and a file does not.
func TestSuppressionProgress(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	var file strings.Builder
	file.WriteString("address\n")
	for i := range 2500 {
		fmt.Fprintf(&file, "to%d@example.net\n", i)
	}
	if err := os.WriteFile(s.dir+"/in.csv", []byte(file.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	both := func(cmd *exec.Cmd, terminal *os.File) { cmd.Stderr = terminal }
	if seen := s.atTerminal(t, 80, both, "suppression", "import", "in.csv", "--global"); !strings.HasSuffix(seen, "\rimported 2500 of 2500\n") {
		t.Errorf("import shows %q", seen)
	}
	if seen := s.atTerminal(t, 80, both, "suppression", "export", "--global"); !strings.HasSuffix(seen, "\rexported 2500 of 2500\n") {
		t.Errorf("export shows %q", seen)
	}
	if _, said, err := s.postern(t, "", "suppression", "import", "in.csv", "--global"); err != nil || said != "" {
		t.Errorf("without a terminal: %q, %v", said, err)
	}
}

// TestSuppressionServed follows a running node: an entry is refused within two seconds, its hits are
// counted, and an application that accepts it gets a notice.
func TestSuppressionServed(t *testing.T) {
	t.Parallel()
	next := smtptest.Start(t, smtptest.Config{})
	s := installSite(t)
	s.must(t, "", "upstream", "add", "out", "--host", next.Addr(), "--tls", "none")
	s.must(t, "", "route", "add", "--via", "out")
	s.serve(t)
	c := s.dialogue(t)
	c.say(250, "MAIL FROM:<alice@example.com>")
	c.say(250, "RCPT TO:<bob@example.net>")
	c.say(250, "RSET")
	s.must(t, "", "suppression", "add", "bob@example.net", "--user", s.account.name)
	// Not a bound on the time, which is the machine's: two seconds are for a machine that has it.
	deadline := time.Now().Add(patience)
	for refused := false; !refused; {
		c.say(250, "MAIL FROM:<alice@example.com>")
		if err := c.PrintfLine("RCPT TO:<bob@example.net>"); err != nil {
			t.Fatal(err)
		}
		code, text, err := c.ReadResponse(0)
		if err != nil {
			t.Fatal(err)
		}
		if refused = code == 550; refused && !strings.HasPrefix(text, "5.1.1 bob@example.net is suppressed since ") {
			t.Errorf("reply %d %s", code, text)
		}
		c.say(250, "RSET")
		if time.Now().After(deadline) {
			t.Fatal("it is not refused")
		}
		if !refused {
			time.Sleep(100 * time.Millisecond)
		}
	}
	for hits := 0; hits == 0; time.Sleep(100 * time.Millisecond) {
		list := s.must(t, "", "suppression", "export", "--user", s.account.name)
		fields := strings.Split(strings.Split(list, "\n")[1], ",")
		hits, _ = strconv.Atoi(fields[len(fields)-2])
		if time.Now().After(deadline) {
			t.Fatalf("no hit: %s", list)
		}
	}
	c.say(221, "QUIT")

	s.must(t, "", "credential", "set", "1", "--suppressed", "accept")
	c = s.dialogue(t)
	c.say(250, "MAIL FROM:<alice@example.com>")
	c.say(250, "RCPT TO:<bob@example.net>")
	c.say(250, "RCPT TO:<ann@example.net>")
	c.say(354, "DATA")
	if err := c.PrintfLine("From: alice@example.com\r\n\r\nhello\r\n."); err != nil {
		t.Fatal(err)
	}
	_, text, err := c.ReadResponse(250)
	if err != nil {
		t.Fatal(err)
	}
	c.say(221, "QUIT")
	got := next.WaitMessages(t, 2)
	to := []string{got[0].To()[0], got[1].To()[0]}
	if len(got[0].To()) != 1 || len(got[1].To()) != 1 || !(to[0] == "ann@example.net" && to[1] == "alice@example.com" || to[1] == "ann@example.net" && to[0] == "alice@example.com") {
		t.Errorf("mail to %v: the message for ann, and the notice, were to go out", to)
	}
	_, id, _ := strings.Cut(text, "queued as ")
	h := s.finished(t, id)
	if list := results(h, "bob@example.net"); len(list) == 0 || list[0] != "suppressed 550 5.1.1 This address is suppressed; nothing was sent" {
		t.Errorf("the trace says %q", list)
	}
}
