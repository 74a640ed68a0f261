package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"postern/admin/health"
	"postern/cmd/postern/check"
	"postern/internal/dnstest"
	"postern/internal/pgtest"
	"postern/internal/smtptest"
	"postern/relay/seal"
)

// A real server in good health: everything is found, nothing is wrong with it, and it
// has heard of one failed login and no more.
func TestCheckOfARunningServer(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	s.must(t, "", "route", "add", "--via", "mx")
	d := s.serve(t)
	text, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	ports := strings.Replace(string(text), "127.0.0.1:0", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.starttls)), 1)
	ports = strings.Replace(ports, "127.0.0.1:0", net.JoinHostPort("127.0.0.1", strconv.Itoa(s.implicit)), 1)
	if err := os.WriteFile(s.config, []byte(ports), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	run(t.Context(), []string{"--config", s.config, "check", "--offline", "--json"}, s.env, nil, &stdout, &stderr)
	var found []health.Finding
	if err := json.Unmarshal(stdout.Bytes(), &found); err != nil {
		t.Fatalf("%v: %s%s", err, &stdout, &stderr)
	}
	for _, f := range found {
		// What the tests' database, certificate and machine are.
		expected := []string{"db.durability", "db.connections-tight", "db.slow", "db.room-low", "spool.small", "tls.private", "tls.name"}
		if (f.Status == health.Failed || f.Status == health.Warning || f.Status == health.Skipped) && !slices.Contains(expected, f.ID) {
			t.Errorf("%+v", f)
		}
	}
	count := map[string]int{}
	for _, f := range found {
		count[f.ID]++
	}
	for id, want := range map[string]int{"port.ours": 2, "relay.closed": 2, "node.ok": 1, "account.ok": 1, "route.ok": 1} {
		if count[id] != want {
			t.Errorf("%d of %s, want %d", count[id], id, want)
		}
	}
	d.await(t, &d.stderr, `"user":"postern-check-`)
	if n := strings.Count(d.stderr.String(), `"reason":"credentials"`); n != 1 {
		t.Errorf("%d failed logins\n%+v", n, found)
	}
}

// checkedFile is the configuration of a server that can be looked at, with what follows.
func checkedFile(t *testing.T, more string) (file string) {
	t.Helper()
	dir := t.TempDir()
	smtptest.NewCA(t).Leaf(t, "relay.test").WriteFiles(t, dir)
	file = filepath.Join(dir, "postern.toml")
	const text = `hostname = "relay.test"
secret_key_file = "secret.key"
[[listener]]
address = "127.0.0.1:0"
tls = "starttls"
[tls]
certificate = "cert.pem"
key = "key.pem"
[submission]
spool = "64MiB"
`
	err := errors.Join(os.WriteFile(file, []byte(text+more), 0o600),
		os.WriteFile(filepath.Join(dir, "secret.key"), bytes.Repeat([]byte("k"), seal.KeySize), 0o600))
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// The commands of the page run as they stand there; some find things, none is wrong use.
func TestCheckPageCommandsRun(t *testing.T) {
	t.Parallel()
	file := checkedFile(t, fmt.Sprintf("[dns]\nservers = [%q]\n", dnsServer(t)))
	db := pgtest.New(t)
	ran := 0
	for _, block := range codeBlocks(t, "../../docs/check.md", "sh") {
		for line := range strings.Lines(block) {
			command, _, _ := strings.Cut(line, "#")
			args := strings.Fields(command)
			if len(args) < 2 || args[0] != "postern" || args[1] != "check" {
				t.Fatalf("%q is not run by this test", line)
			}
			var stdout, stderr bytes.Buffer
			status := run(t.Context(), append([]string{"--config", file, "--database-url", db.URL}, args[1:]...),
				nil, strings.NewReader(""), &stdout, &stderr)
			if status == exitUsage || stdout.Len() == 0 || strings.Contains(stderr.String(), "see '") {
				t.Errorf("%s: status %d\n%s%s", command, status, &stdout, &stderr)
			}
			ran++
		}
	}
	if ran < 5 {
		t.Errorf("%d commands ran", ran)
	}
}

// dnsServer answers on a port of 127.0.0.1.
func dnsServer(t *testing.T) (address string) {
	t.Helper()
	var z dnstest.Zones
	z.Set("relay.test.", "A 198.51.100.7")
	z.Set("7.100.51.198.in-addr.arpa.", "PTR relay.test.")
	return z.Serve(t)
}

func TestCheckOutput(t *testing.T) {
	t.Parallel()
	file := checkedFile(t, "")
	if err := os.Chmod(filepath.Join(filepath.Dir(file), "secret.key"), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"--config", file, "check", "--only", "config"}
	var stdout, stderr bytes.Buffer
	if status := run(t.Context(), args, nil, strings.NewReader(""), &stdout, &stderr); status != exitFailed {
		t.Errorf("status %d", status)
	}
	if !strings.Contains(stderr.String(), "the check failed: 1 of 3 findings") {
		t.Error(stderr.String())
	}
	for _, want := range []string{"ok      configuration  every key", "[key.readable]\n", "                       to do: chmod 600 it"} {
		if !strings.Contains(stdout.String(), want) {
			t.Errorf("%q is not in\n%s", want, &stdout)
		}
	}
	stdout.Reset()
	run(t.Context(), append(args, "--json"), nil, strings.NewReader(""), &stdout, &stderr)
	var list []health.Finding
	if err := json.Unmarshal(stdout.Bytes(), &list); err != nil || len(list) != 3 {
		t.Fatalf("%v: %s", err, &stdout)
	}
	if key := list[2]; key.ID != "key.readable" || !strings.Contains(key.Text, "mode 0644") || key.Todo == "" {
		t.Errorf("%+v", key)
	}
}

func TestCheckIsUsedWrongly(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ args, want string }{
		{"--only dns,weather", `there is no area "weather"`},
		{"--address relay.test", "is not an IP address"},
		{"--mx -x-", "is not a domain name"},
		{"--connect relay.test", "is not host:port"},
		{"--only mx", "--only mx needs --mx DOMAIN"},
		{"--only config,mx", "--only mx needs --mx DOMAIN"},
		{"--only upstream --offline", "--only upstream queries other servers, which --offline forbids"},
		{"--only dns --offline", "--only dns queries other servers, which --offline forbids"},
		{"--mx example.net --offline", "--mx queries other servers, which --offline forbids"},
		{"--mx example.net --only dns", "--mx is for mx, which --only leaves out"},
		{"--address 192.0.2.1 --only mx --mx example.net", "--address is for dns and spf, which --only leaves out"},
		{"--connect relay.test:25 --only config", "--connect is for relay, which --only leaves out"},
	} {
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), append([]string{"check"}, strings.Fields(test.args)...), nil, strings.NewReader(""), &stdout, &stderr)
		if status != exitUsage || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%s: status %d, %s", test.args, status, &stderr)
		}
	}
}

// A configuration that cannot be used is told whatever was asked for, and nothing is judged
// without it.
func TestCheckOfAnyAreaTellsABrokenConfiguration(t *testing.T) {
	t.Parallel()
	path := checkedFile(t, "hostnme = \"relay.test\"\n")
	for _, area := range check.Areas() {
		args := []string{"--config", path, "--database-url", "postgres://127.0.0.1:1/x", "check", "--json", "--only", area}
		if area == "mx" {
			args = append(args, "--mx", "example.net")
		}
		var stdout, stderr bytes.Buffer
		status := run(t.Context(), args, nil, strings.NewReader(""), &stdout, &stderr)
		var found []health.Finding
		if err := json.Unmarshal(stdout.Bytes(), &found); err != nil {
			t.Fatalf("--only %s: %v: %s", area, err, &stderr)
		}
		told, others := 0, 0
		for _, f := range found {
			switch {
			case f.ID == "config.invalid" && strings.Contains(f.Text, path):
				told++
			case f.ID != "check.skipped":
				others++
			}
		}
		if status != exitFailed || told != 1 || others > 0 {
			t.Errorf("--only %s: status %d, and %+v", area, status, found)
		}
	}
}
