package main

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"postern/cmd/postern/trial"
	"postern/internal/oauthtest"
	"postern/internal/smtptest"
)

// An upstream is tried without sending mail, also while it is paused: each step is told, and
// what to do where one fails.
func TestUpstreamTest(t *testing.T) {
	t.Parallel()
	s, a, server := tokenSite(t)
	ca := filepath.Join(s.dir, "upstream.pem")
	s.must(t, clientSecret, "upstream", "add", "m365", "--preset", "m365", "--host", server.Addr(), "--ca-file", ca, "--username", "relay@example.com",
		"--tenant", "example.com", "--client-id", "app-1", "--oauth", "client-credentials", "--client-secret-stdin")
	s.must(t, "", "upstream", "pause", "m365")
	out := s.must(t, "", "upstream", "test", "m365", "--from", "alice@example.com", "--to", "bob@example.net")
	rest := out
	for _, want := range []string{
		"paused since", "lookup", "127.0.0.1\n", "connect", server.Addr(), "greeting", "220 ", "ehlo", "STARTTLS", "tls", "TLS 1.3 TLS_", ", verified by ",
		"certificate for 127.0.0.1 until 20", "key sha256:", "ehlo", "XOAUTH2", "auth", "XOAUTH2: 235 ", "mail", "250 ", "rcpt", "250 ", "reset", "250 ",
		"quit", "221 ", "mail can be sent by upstream m365 from here\n",
	} {
		at := strings.Index(rest, want)
		if at < 0 {
			t.Fatalf("no %q in its place:\n%s", want, out)
		}
		rest = rest[at+len(want):]
	}
	if !strings.Contains(out, "good until 20") || strings.Contains(out, "access-") || len(server.Messages()) != 0 || server.Reached(smtptest.PhaseData) != 0 {
		t.Errorf("%s", out)
	}

	fails := func(step, todo string, args ...string) {
		t.Helper()
		out, _, err := s.postern(t, "", append([]string{"upstream", "test", "m365", "--json"}, args...)...)
		var view trial.Result
		if json.Unmarshal([]byte(out), &view) != nil || err == nil || view.OK || len(view.Steps) == 0 {
			t.Fatalf("%v\n%s", err, out)
		}
		for _, v := range view.Steps {
			if v.Status == "failed" {
				if v.Step != step || !strings.Contains(v.Todo, todo) || v.Text == "" {
					t.Errorf("%+v, want %s and %q", v, step, todo)
				}
				return
			}
		}
		t.Errorf("nothing failed\n%s", out)
	}
	set := func(args ...string) {
		t.Helper()
		s.must(t, "", append([]string{"upstream", "set", "m365"}, args...)...)
	}
	set("--senders", "example.com", "--rewrite-sender", "relay@example.com")
	connected := server.Conns()
	fails("mail", "--senders", "--from", "eve@example.org", "--to", "bob@example.net")
	if server.Conns() != connected {
		t.Error("it was connected to, for a sender that it may not have")
	}
	for from, want := range map[string]string{"alice@example.com": "mail from:<relay@example.com>", "": "mail from:<>"} {
		said := ""
		server.On(smtptest.PhaseMail, func(got smtptest.Session) smtptest.Action {
			said = got.Command
			return smtptest.Action{}
		})
		out := s.must(t, "", "upstream", "test", "m365", "--from", from, "--to", "bob@example.net")
		if !strings.HasPrefix(strings.ToLower(said), want) || strings.Contains(out, "as relay@example.com: 250 ") != (from != "") {
			t.Errorf("from %q it said %q\n%s", from, said, out)
		}
	}
	set("--senders", "", "--rewrite-sender", "")
	server.On(smtptest.PhaseMail, smtptest.Always(smtptest.Reply("550 5.7.60 SMTP; Client does not have permissions to send as this sender")))
	fails("mail", "Send As", "--from", "eve@example.com", "--to", "bob@example.net")
	if _, said, _ := s.postern(t, "", "upstream", "test", "m365", "--from", "eve@example.com", "--to", "bob@example.net"); !strings.Contains(said, "upstream m365 refuses the sender of --from") {
		t.Errorf("of a sender: %s", said)
	}
	server.On(smtptest.PhaseAuth, smtptest.Always(smtptest.Reply("535 5.7.3 Authentication unsuccessful")))
	fails("auth", "enterprise application")
	set("--tls", "implicit", "--host", server.Addr())
	fails("tls", "begins without TLS: set --tls require")
	set("--tls", "require", "--host", server.Addr(), "--ca-file", "")
	fails("tls", "--ca-file")
	set("--ca-file", ca, "--tls-name", "mail.example.net")
	fails("tls", "to a name that it has, with 'postern upstream set m365'")
	set("--tls-name", "", "--source", "192.0.2.77")
	fails("connect", "another --source")
	set("--source", "", "--host", "127.0.0.1:1")
	fails("connect", "nothing listens at port 1 there")
	set("--host", "nowhere.invalid:25")
	fails("lookup", "correct --host")
	a.Set(func(s *oauthtest.Settings) { s.Secrets["app-1"] = "another" })
	a.RevokeAll()
	s.must(t, "wrong", "upstream", "set", "m365", "--host", server.Addr(), "--oauth", "client-credentials", "--tenant", "example.com", "--client-id", "app-1", "--client-secret-stdin")
	fails("token", "https://entra.microsoft.com")
}

// The test takes a session of the upstream's budget, as nodes and the check do: while all are in use it
// opens none, and says what to do.
func TestUpstreamTestTakesASession(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	open := make(chan struct{})
	server.On(smtptest.PhaseRcpt, func(smtptest.Session) smtptest.Action {
		return smtptest.Then(smtptest.StallUntil(open), smtptest.Normal())
	})
	s := installSite(t)
	s.must(t, "", "upstream", "add", "out", "--host", server.Addr(), "--tls", "none", "--budget", "sessions 1")
	s.must(t, "", "route", "add", "--via", "out")
	s.serve(t)
	s.asGoDoes(t, plainMail, "bob@example.net")
	server.WaitPhase(t, smtptest.PhaseRcpt, 1)
	out, said, err := s.postern(t, "", "upstream", "test", "out", "--timeout", "3s")
	if err == nil || !strings.Contains(out, "failed  budget") || !strings.Contains(out, "'postern upstream show out'") ||
		!strings.Contains(said, "upstream out was not tried: all sessions of its budget are in use") {
		t.Errorf("%v\n%s%s", err, out, said)
	}
	if out, _, _ := s.postern(t, "", "check", "--only", "upstream"); !strings.Contains(out, "upstream.busy") {
		t.Errorf("the check:\n%s", out)
	}
	if server.Conns() != 1 {
		t.Errorf("%d connections beside the delivery's", server.Conns()-1)
	}
	close(open)
	server.WaitMessages(t, 1)
	s.must(t, "", "upstream", "test", "out")
	s.must(t, "", "upstream", "test", "out") // the first gave its session back
}

// The settings of the way are shown as they were set, and refused where they make no sense.
func TestUpstreamSettings(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	pin := "sha256:" + strings.Repeat("0", 64)
	s.must(t, "secret", "upstream", "add", "out", "--host", "smtp.example.net:587", "--username", "relay", "--password-stdin", "--tls-pin", pin, "--tls-pin", "sha256:"+strings.Repeat("f", 64),
		"--auth-mechanism", "login", "--source", "192.0.2.1,2001:db8::1", "--ip", "both", "--hello", "out.example.net", "--idle", "90s")
	out := s.must(t, "", "upstream", "show", "out")
	for _, want := range []string{"sha256:AAAA", "sha256:////", "login", "192.0.2.1,2001:db8::1", "both", "out.example.net", "90s"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	for flag, bad := range map[string]string{"--source": "eth0", "--ip": "5", "--hello": "a b", "--idle": "soon", "--tls-pin": "sha1:x", "--auth-mechanism": "xoauth2"} {
		if _, stderr, err := s.postern(t, "", "upstream", "set", "out", flag, bad); err == nil || !strings.Contains(stderr, bad) {
			t.Errorf("%s %s: %v %s", flag, bad, err, stderr)
		}
	}
	s.must(t, "", "upstream", "set", "out", "--tls-pin", "", "--auth-mechanism", "auto", "--source", "", "--ip", "", "--hello", "", "--idle", "0")
	var view struct {
		Source, IP, Hello string
		Pins              string `json:"tls_pins"`
		Mechanism         string `json:"auth_mechanism"`
		Idle              int    `json:"idle_seconds"`
	}
	if err := json.Unmarshal([]byte(s.must(t, "", "upstream", "show", "out", "--json")), &view); err != nil || view.Pins+view.Source+view.IP+view.Hello+view.Mechanism != "" || view.Idle != 0 {
		t.Errorf("%v %+v", err, view)
	}
}
