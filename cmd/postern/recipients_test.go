package main

import (
	"fmt"
	"strings"
	"testing"

	"postern/internal/pgtest"
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
		"postern credential set 12 --suppressed ignore":                                                     "credential 12 of shop@example.com",
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
