package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/dnstest"
	"postern/internal/pgtest"
	"postern/internal/smtptest"
)

// shellOf is a folder in which postern is a command on a database.
func shellOf(t *testing.T, db *pgtest.DB) *adminShell {
	t.Helper()
	s := &adminShell{dir: t.TempDir()}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(s.dir, "postern")); err != nil {
		t.Fatal(err)
	}
	s.env = append(os.Environ(), "POSTERN_TEST_AS_PROGRAM=1", "POSTERN_DATABASE_URL="+db.URL, "PATH="+s.dir+":"+os.Getenv("PATH"))
	return s
}

// A node gives a mail host that does not prove what it must nothing of a message, until an admin says
// otherwise.
func TestNodeKeepsMailFromAForgedHost(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "mx.example.net")})
	zones := &dnstest.Zones{}
	zones.Sign("example.net")
	zones.AddMX("example.net", 10, "mx.example.net")
	zones.AddHost("mx.example.net", "127.0.0.1")
	zones.Add("_25._tcp.mx.example.net. 0 IN TLSA 3 1 1 " + strings.Repeat("ab", 32))
	s := shellOf(t, pgtest.New(t))
	s.write(t, "postern.toml", fmt.Sprintf(`hostname = "relay.example.com"
[[listener]]
address = "127.0.0.1:%d"
tls = "starttls"
[tls]
self_signed = true
[dns]
servers = [%q]
[delivery]
mx_port = %d
allow_private_mx = true
`, unusedPort(t), zones.Serve(t), server.Port()))
	s.must(t, "postern route add --via mx && echo 'a good password' | postern user add alice@example.com --password-stdin")
	s.serve(t)
	s.submit(t, []string{"alice@example.com", "a good password", "alice@example.com", "to", "bob@example.net"})
	s.traced(t, "bob@example.net", func(trace string) bool {
		return strings.Contains(trace, " deferred ") && strings.Contains(trace, "- - refused dane") && strings.Contains(trace, "451 4.7.5")
	})
	if n := server.Reached(smtptest.PhaseMail); n != 0 {
		t.Fatalf("%d MAIL", n)
	}
	s.field = "TLS-Required: No\r\n"
	s.submit(t, []string{"alice@example.com", "a good password", "alice@example.com", "to", "carol@example.net"})
	s.traced(t, "carol@example.net", func(trace string) bool { return strings.Contains(trace, "unverified optional mx.example.net") })
	s.must(t, "postern transport override example.net --level encrypted --for 1h --reason 'known to be theirs'")
	s.traced(t, "bob@example.net", func(trace string) bool {
		if strings.Contains(trace, "unverified override mx.example.net") {
			return true
		}
		s.must(t, "postern queue retry --all")
		return false
	})
	for i, m := range server.WaitMessages(t, 2) {
		if !m.TLS {
			t.Errorf("message %d went in clear", i)
		}
	}
}

// docs/transport.md: its commands, for a domain with DANE, one with MTA-STS and one without a host
// for its policy.
func TestTransportPage(t *testing.T) {
	t.Parallel()
	zones := &dnstest.Zones{}
	zones.Sign("example.net")
	zones.AddMX("example.net", 10, "mx1.example.net")
	zones.AddMX("example.net", 20, "mx2.example.net")
	zones.AddHost("mx1.example.net", "192.0.2.1")
	zones.AddHost("mx2.example.net", "192.0.2.2")
	zones.Add("_25._tcp.mx1.example.net. 0 IN TLSA 3 1 1 9d0a2c1e" + strings.Repeat("00", 28))
	zones.AddTXT("_mta-sts.example.net", "v=STSv1; id=2;")
	db := pgtest.New(t)
	s := shellOf(t, db)
	s.write(t, "postern.toml", fmt.Sprintf("hostname = \"relay.example.com\"\n[dns]\nservers = [%q]\n", zones.Serve(t)))
	if _, err := db.Pool.Exec(t.Context(), `insert into sts_policy (domain, id, mode, mx, fetched_at, expires_at, tried_id, due_at)
		values ('example.net', '2', 'enforce', '{mx2.example.net}', now(), now() + interval '1 day', '2', now() + interval '1 day')`); err != nil {
		t.Fatal(err)
	}
	said := map[string]string{}
	for _, b := range blocksOf(t, "../../docs/transport.md") {
		if b.language != "sh" {
			continue
		}
		for line := range strings.Lines(b.text) {
			if line = strings.TrimSpace(line); strings.Contains(line, "refresh") { // its policy host is nowhere
				out, err := s.command(t, line).CombinedOutput()
				if err == nil || !strings.Contains(string(out), "get the policy from mta-sts.example.net: ") {
					t.Errorf("%s: %v, %s", line, err, out)
				}
				continue
			}
			said[line] = s.must(t, line)
		}
	}
	for line, want := range map[string][]string{
		"postern transport show example.net": {"enforce until ", "id 2, mx mx2.example.net", "validated by DNSSEC",
			"mx1.example.net  dane     TLS, with a certificate of its TLSA records: 3 1 1 9d0a2c1e…", "mx2.example.net  mta-sts  TLS, with a certificate for its name"},
		"postern transport show": {"example.net  mta-sts  enforce until "},
		"postern transport override example.net --level encrypted --for 2d --reason 'their TLSA record is of the former key'": {"example.net: encrypted until ", "to do: if mail waits, run 'postern queue retry --domain example.net' in ten seconds"},
		"postern transport override example.net --clear":                                                                      {"cleared the override of example.net"},
	} {
		for _, w := range want {
			if !strings.Contains(said[line], w) {
				t.Errorf("%s does not say %q:\n%s", line, w, said[line])
			}
		}
	}
	zones.AddMX("first.example", 10, "mx1.example.net")
	zones.AddTXT("_mta-sts.first.example", "v=STSv1; id=1;")
	if shown := s.must(t, "postern transport show first.example"); !strings.Contains(shown, "mta-sts     cannot be fetched since ") {
		t.Errorf("a policy without a host:\n%s", shown)
	}
	s.must(t, "postern transport override EXAMPLE.net --level opportunistic --reason 'no STARTTLS today'")
	if list := s.must(t, "postern transport show"); !strings.Contains(list, "override  opportunistic until ") || !strings.Contains(list, "cannot be renewed since ") {
		t.Errorf("list:\n%s", list)
	}
	var shown struct {
		Override struct{ Level, Reason string } `json:"override"`
		STS      struct{ Mode string }          `json:"mta_sts"`
		Hosts    []struct{ Host, Policy string }
	}
	if err := json.Unmarshal([]byte(s.must(t, "postern transport show --json example.net")), &shown); err != nil || shown.Override.Level != "opportunistic" ||
		shown.STS.Mode != "enforce" || len(shown.Hosts) != 2 || shown.Hosts[1].Policy != "override" {
		t.Errorf("%+v, %v", shown, err)
	}
	if audit := s.must(t, "postern audit"); strings.Count(audit, "transport override") != 3 {
		t.Errorf("audit:\n%s", audit)
	}
	for _, wrong := range []string{"show a b", "show [127.0.0.1]", "refresh", "override example.net", "override example.net --level strict --reason x",
		"override example.net --level verified", "override example.net --clear --for 2d", "override example.net --level verified --reason 'a\nb'", "override example.net --level verified --reason x --clear", "override example.net --level verified --reason x --for 1000d"} {
		if out, err := s.command(t, "postern transport "+wrong).CombinedOutput(); err == nil {
			t.Errorf("%s: %s", wrong, out)
		}
	}
}
