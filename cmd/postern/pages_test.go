package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/pgtest"
)

// docs/upstreams.md: each provider is the guide's smarthost, whatever its name.
func TestUpstreamsPage(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	for _, provider := range []string{
		"smtp.provider.example:587", "smtp.office365.com:587", "example-com.mail.protection.outlook.com:25",
		"smtp-relay.gmail.com:587", "smtp.gmail.com:587", "email-smtp.eu-central-1.amazonaws.com:587",
	} {
		g.replaced = append([]string{provider, g.next.Addr()}, g.replaced...)
	}
	for _, preset := range []string{"m365", "google"} {
		g.replaced = append(g.replaced, "--preset "+preset, "--preset "+preset+" --tls require --host "+g.next.Addr())
	}
	g.replaced = append(g.replaced, "AKIAIOSFODNN7EXAMPLE", "relay@example.com")
	g.installed(t)
	g.must(t, "echo 'a good password' | postern user add alice@example.com --password-stdin")
	g.serve(t)
	g.after["postern explain --user alice@example.com --from alice@example.com --to bob@example.net"] = func(said string) {
		if !strings.Contains(said, "provider") {
			t.Errorf("the way is not named:\n%s", said)
		}
	}
	g.after[`printf 'From: alice@example.com\nTo: bob@example.net\nSubject: Hello\n\nHello.\n' |`] = func(string) {
		g.next.WaitMessages(t, 1)
	}
	g.follow(t, "../../docs/upstreams.md")
	if said := g.must(t, "postern check --only upstream"); strings.Count(said, "answers") != 8 {
		t.Errorf("not every upstream of the page answers:\n%s", said)
	}
}

// docs/coming-from-postfix-or-exim.md: the users of the old server keep password and senders.
func TestComingFromPage(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.installed(t)
	g.serve(t)
	g.after["while read -r address logins; do"] = func(said string) {
		for _, pattern := range []string{"sales@example.com", "bob@example.com", "*@shop.example.com"} {
			if !strings.Contains(said, "\n"+pattern+" ") {
				t.Errorf("bob has no pattern %s:\n%s", pattern, said)
			}
		}
	}
	g.after[`printf 'From: alice@example.com\nTo: bob@example.net\nSubject: Hello\n\nHello.\n' |`] = func(string) {
		g.next.WaitMessages(t, 1)
	}
	g.follow(t, "../../docs/coming-from-postfix-or-exim.md")
}

// docs/events.md: its commands, also the first time, without a cursor; and its reader goes on where it
// stopped.
func TestEventsPage(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	s := shellOf(t, db)
	s.must(t, "echo 'a good password' | postern user add alice@example.com --password-stdin")
	s.must(t, "postern events --follow --since 1d --limit 1") // transactions of others may hold it back
	said := ""
	for _, b := range blocksOf(t, "../../docs/events.md") {
		if b.language != "sh" || strings.Contains(b.text, "postern check") { // which fails here: the test's server is not durable
			continue
		}
		said += s.must(t, b.text)
		if strings.Contains(b.text, "while read") {
			if again := s.must(t, b.text); again != "" {
				t.Errorf("the reader hears again: %s", again)
			}
		}
	}
	if !strings.Contains(said, "user add  alice@example.com") || !strings.Contains(said, `"kind":"audit"`) || !strings.Contains(said, "audit null\n") {
		t.Errorf("the commands said: %s", said)
	}
}

// docs/alerts.md: a running node sends a mail when somebody wants one, by the way of other mail.
func TestAlertsPage(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.installed(t)
	path := filepath.Join(g.dir, "postern.toml")
	cfg, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blocksOf(t, "../../docs/alerts.md") {
		if b.language == "toml" {
			cfg = append(cfg, "\n"+b.text...)
		}
	}
	if err := os.WriteFile(path, cfg, 0o600); err != nil {
		t.Fatal(err)
	}
	g.serve(t)
	for _, b := range blocksOf(t, "../../docs/alerts.md") {
		if b.language == "sh" {
			g.must(t, b.text)
		}
	}
	m := g.next.WaitMessages(t, 1)[0]
	if text := string(m.Data); !strings.HasPrefix(m.Mail, "FROM:<>") || len(m.Rcpts) != 1 || !strings.HasPrefix(m.Rcpts[0], "TO:<ops@example.com>") || !strings.Contains(text, "This is a test: 'postern alerts test' asked for it.") ||
		!strings.Contains(text, "\r\nAuto-Submitted: auto-generated\r\n") {
		t.Errorf("MAIL %q, RCPT %q: %s", m.Mail, m.Rcpts, text)
	}
}
