package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"postern/internal/peers"
	"postern/internal/smtptest"
)

// docs/install.md, from the empty database to the first mail.
func TestInstallGuide(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.elsewhere = map[string]string{
		"make deb":                   "it installs a package: the tests of configs/debian do",
		"make build man":             "it changes the machine",
		"docker compose up --detach": "it needs a container engine",
		"docker compose exec postern postern user list": "it needs a container engine",
	}
	g.instead["sudo systemctl enable --now postern"] = func() { g.serve(t) }
	g.mayFail["sudo -u postern postern check"] = "DNS knows nothing of this machine"
	g.after["sudo -u postern postern check"] = func(said string) {
		for _, word := range []string{"configuration", "certificate", "database", "durability", "schema", "route", "upstream"} {
			if !strings.Contains(said, word) {
				t.Errorf("check says nothing of %q:\n%s", word, said)
			}
		}
	}
	g.after[`printf 'From: alice@example.com\nTo: bob@example.net\nSubject: Hello\n\nHello.\n' |`] = func(string) {
		m := g.next.WaitMessages(t, 1)[0]
		if m.From() != "alice@example.com" || !slices.Equal(m.To(), []string{"bob@example.net"}) {
			t.Errorf("it arrived from %q for %q", m.From(), m.To())
		}
	}
	g.after["sudo -u postern postern trace bob@example.net"] = func(said string) {
		if !strings.Contains(said, "alice@example.com") {
			t.Errorf("the trace is not of the message:\n%s", said)
		}
	}
	g.follow(t, "../../docs/install.md")
}

// docs/clients.md: everything that can be run here sends its message, with the
// settings that stand there.
func TestClientsGuide(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.installed(t)
	g.must(t, "postern user add shop@example.com")
	g.serve(t)
	g.after[`postern credential add shop@example.com --generate --label 'web shop'`] = func(said string) {
		m := regexp.MustCompile(`(?m)^secret: (\S+)$`).FindStringSubmatch(said)
		if m == nil {
			t.Fatalf("no secret is shown:\n%s", said)
		}
		g.replaced = append(g.replaced, "ps_SECRET", m[1])
	}
	sent := 0
	send := func(string) {
		sent++
		g.next.WaitMessages(t, sent)
	}
	for _, first := range []string{
		`swaks --server relay.example.com --port 587 --tls --tls-verify --auth PLAIN \`,
		`printf 'From: shop@example.com\nTo: bob@example.net\nSubject: Hello\n\nHello.\n' |`,
		`chmod 600 msmtprc`, `python3 send.py`, `node send.cjs`, `go run send.go`,
	} {
		g.after[first] = send
	}
	g.follow(t, "../../docs/clients.md")
	g.must(t, "python3 -m py_compile settings.py")
	for i, m := range g.next.Messages() {
		if m.From() != "shop@example.com" || !slices.Equal(m.To(), []string{"bob@example.net"}) {
			t.Errorf("message %d is from %q for %q", i+1, m.From(), m.To())
		}
	}
	if sent != 6 {
		t.Errorf("%d programs have sent", sent)
	}
	g.satellite(t)
}

// satellite is a Postfix with the parameters of docs/clients.md.
func (g *guide) satellite(t *testing.T) {
	t.Helper()
	main := map[string]string{}
	for _, b := range blocksOf(t, "../../docs/clients.md") {
		if b.name != "main.cf" {
			continue
		}
		for line := range strings.Lines(g.here(b.text)) {
			name, value, ok := strings.Cut(line, " = ")
			if !ok {
				t.Fatalf("no parameter: %q", line)
			}
			main[name] = strings.TrimSpace(value)
		}
	}
	if main["relayhost"] == "" {
		t.Fatal("docs/clients.md has no main.cf")
	}
	before := len(g.next.Messages())
	s := peers.StartSatellite(t, main)
	if err := s.Send("root@host.example.com", "bob@example.net", "From: root@host.example.com\r\nSubject: cron\r\n\r\nx\r\n"); err != nil {
		t.Fatal(err)
	}
	m := g.next.WaitMessages(t, before+1)[before]
	if m.From() != "shop@example.com" || !strings.Contains(string(m.Data), "From: shop@example.com") {
		t.Errorf("it arrived from %q:\n%s", m.From(), m.Data)
	}
}

// docs/operate.md. The restore is followed with mail that was delivered after the
// backup: it must not be sent again before an admin says so.
func TestOperateGuide(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	g.installed(t)
	g.must(t, "echo 'a good password' | postern user add alice@example.com --password-stdin --sender '*@example.com'")
	stop := g.serveUntil(t)
	g.mayFail["postern check"] = "DNS knows nothing of this machine"
	r := &restoreDrill{guide: g, open: make(chan struct{})}
	g.next.On(smtptest.PhaseRcpt, r.answer)
	g.send(t, []string{"alice@example.com", "a good password", "alice@example.com", "to", "late@example.net"})
	r.submit(t, "hand@example.net")
	g.next.WaitPhase(t, smtptest.PhaseRcpt, 2)

	g.after["pg_dump --format=custom --file=postern.dump postern"] = func(string) {
		close(r.open)
		g.must(t, "postern queue retry --all")
		g.next.WaitMessages(t, 2)
		stop() // every node
	}
	g.after["export POSTERN_DATABASE_URL='postgres:///restored?host=/run/postgresql'"] = func(string) {
		// The backup is an hour old.
		g.must(t, `psql -q restored -c "update message set accepted_at = accepted_at - interval '1 hour';
			update recipient set accepted_at = accepted_at - interval '1 hour';
			update node set beat_at = beat_at - interval '1 hour', expires_at = expires_at - interval '1 hour'"`)
		g.useDatabase(t, "restored")
		stop = g.serveUntil(t)
		r.submit(t, "new@example.net")
	}
	g.after["postern queue list --state sending"] = func(said string) {
		for end := time.Now().Add(patience); strings.Contains(said, "hand@example.net"); time.Sleep(100 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("nobody takes over what was in hand:\n%s", said)
			}
			said = g.must(t, "postern queue list --state sending")
		}
	}
	g.after["postern route add --via out"] = func(said string) {
		r.neverAgain(t)
		for _, to := range []string{"late@example.net", "hand@example.net"} {
			if !strings.Contains(said, to) {
				t.Errorf("%s, which the backup brought, is not held:\n%s", to, said)
			}
		}
	}
	g.after["postern queue release --all --dry-run"] = func(string) { g.next.WaitMessages(t, 5) }
	g.after["postern user disable alice@example.com --reason 'sends spam'"] = func(string) {
		if holds := g.must(t, "postern queue holds"); !strings.Contains(holds, "sends spam") {
			t.Errorf("no hold:\n%s", holds)
		}
	}
	g.after["journalctl -u postern -o cat --since -2d |"] = func(said string) {
		if text, json := strings.Count(said, "msg=accepted "), strings.Count(said, `"msg":"accepted",`); text != 2 || json != 1 {
			t.Errorf("%d lines of text and %d of JSON for 2 and 1 messages:\n%s", text, json, said)
		}
	}
	g.follow(t, "../../docs/operate.md")
	stop()
}

// restoreDrill is a smarthost that until it is open defers mail to late@example.net and
// does not answer about hand@example.net.
type restoreDrill struct {
	*guide
	open chan struct{}
}

func (r *restoreDrill) answer(s smtptest.Session) smtptest.Action {
	if strings.Contains(s.Command, "hand@example.net") {
		return smtptest.Then(smtptest.StallUntil(r.open), smtptest.Normal())
	}
	select {
	case <-r.open:
	default:
		if strings.Contains(s.Command, "late@example.net") {
			return smtptest.Reply("451 4.2.0 Greylisted, come back later")
		}
	}
	return smtptest.Normal()
}

// submit hands a message in, and does not wait for what becomes of it.
func (r *restoreDrill) submit(t *testing.T, to string) {
	t.Helper()
	r.must(t, r.here(`printf 'From: alice@example.com\n\nx\n' | curl -sS --url smtps://relay.example.com:465 `+
		`--user 'alice@example.com:a good password' --mail-from alice@example.com --crlf --upload-file - --mail-rcpt `+to))
}

// neverAgain waits until new mail has gone out, and sees that nothing else has twice.
func (r *restoreDrill) neverAgain(t *testing.T) {
	t.Helper()
	count := map[string]int{}
	for _, m := range r.next.WaitMessages(t, 3) {
		count[m.To()[0]]++
	}
	if count["new@example.net"] != 1 || count["late@example.net"] != 1 || count["hand@example.net"] != 1 {
		t.Errorf("arrived: %v", count)
	}
}

// useDatabase changes the name in the configuration, and has the log written as JSON.
func (g *guide) useDatabase(t *testing.T, name string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(g.dir, "postern.toml"))
	if err != nil {
		t.Fatal(err)
	}
	changed := strings.Replace(string(text), "///postern?", "///"+name+"?", 1)
	if changed == string(text) {
		t.Fatalf("no URL to change:\n%s", text)
	}
	g.write(t, "postern.toml", changed+"[log]\nformat = \"json\"\n")
}

// serveUntil runs the server until stop is called. journalctl prints its log, behind a line of
// systemd's.
func (g *guide) serveUntil(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	journal, err := os.OpenFile(filepath.Join(g.root, "journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintln(journal, "Started postern.service - Postern mail submission relay.")
	g.program(t, "journalctl", "cat '"+journal.Name()+"'")
	var said watched
	cmd := exec.CommandContext(ctx, filepath.Join(g.root, "bin/postern"), "serve")
	cmd.Dir, cmd.Env, cmd.Stderr = g.dir, g.env, io.MultiWriter(&said, journal)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // its status is that of the interrupt
		_ = journal.Close()
		close(ended)
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		<-ended
	})
	t.Cleanup(stop)
	for end := time.After(patience); ; {
		text, more := said.look()
		if m := readyLine.FindStringSubmatch(text); m != nil {
			g.address = m[1]
			return stop
		}
		select {
		case <-more:
		case <-ended:
			t.Fatalf("the server has ended:\n%s", text)
		case <-end:
			t.Fatalf("the server is not ready:\n%s", text)
		}
	}
}
