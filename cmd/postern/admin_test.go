package main

import (
	"crypto/tls"
	"fmt"
	"net"
	"net/smtp"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"postern/internal/pgtest"
	"postern/internal/serve"
	"postern/internal/smtptest"
)

// TestAdminSessions types the sessions of docs/accounts.md, as they stand there, against
// a server that runs, and compares what is printed.
func TestAdminSessions(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../docs/accounts.md")
	if err != nil {
		t.Fatal(err)
	}
	s := newAdminShell(t)
	lines := strings.Split(string(text), "\n")
	sessions := 0
	for i := 0; i < len(lines); i++ {
		block := func() []string {
			from := i + 1
			for i++; i < len(lines) && lines[i] != "```"; i++ {
			}
			return lines[from:i]
		}
		switch line := lines[i]; {
		case strings.HasPrefix(line, "```csv "):
			name := strings.TrimPrefix(line, "```csv ")
			s.write(t, name, strings.Join(block(), "\n")+"\n")
		case line == "```console":
			s.session(t, block())
			sessions++
		case strings.HasPrefix(line, "<!-- send "):
			s.send(t, strings.Fields(strings.TrimSuffix(strings.TrimPrefix(line, "<!-- send "), " -->")))
		}
	}
	if sessions < 10 {
		t.Errorf("only %d sessions were found", sessions)
	}
}

// adminShell is a folder in which postern is a command, with a database, a server that
// runs, and a next hop that greylists the domain slow.example.
type adminShell struct {
	dir     string
	env     []string
	address string
	next    *smtptest.Server
	field   string // that submit adds to the header
}

func newAdminShell(t *testing.T) *adminShell {
	t.Helper()
	s := &adminShell{dir: t.TempDir()}
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(s.dir, "postern")); err != nil {
		t.Fatal(err)
	}
	s.env = append(os.Environ(), "POSTERN_TEST_AS_PROGRAM=1", "POSTERN_DATABASE_URL="+pgtest.New(t).URL, "LC_ALL=C.UTF-8",
		"POSTERN_SECRET_KEY_FILE="+filepath.Join(s.dir, "secret.key"), "PATH="+s.dir+":"+os.Getenv("PATH"))
	s.write(t, "postern.toml", fmt.Sprintf(`hostname = "relay.example.com"
[[listener]]
address = "127.0.0.1:%d"
tls = "starttls"
[[listener]]
address = "127.0.0.1:%d"
tls = "implicit"
[tls]
self_signed = true
[admin]
address = "127.0.0.1:0"
`, unusedPort(t), unusedPort(t)))
	s.next = smtptest.Start(t, smtptest.Config{})
	s.next.On(smtptest.PhaseRcpt, greylist)
	s.must(t, "postern upstream add out --host "+s.next.Addr()+" --tls none && postern route add --via out")
	s.serve(t)
	return s
}

// unusedPort is serve.FreePort: commands print the ports of the configuration.
func unusedPort(t *testing.T) int {
	t.Helper()
	port, err := serve.FreePort()
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func greylist(s smtptest.Session) smtptest.Action {
	if strings.Contains(s.Command, "slow.example") {
		return smtptest.Reply("451 4.2.0 Greylisted, come back later")
	}
	return smtptest.Normal()
}

func (s *adminShell) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *adminShell) command(t *testing.T, line string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), "sh", "-c", line)
	cmd.Dir, cmd.Env = s.dir, s.env
	return cmd
}

func (s *adminShell) must(t *testing.T, line string) string {
	t.Helper()
	out, err := s.command(t, line).CombinedOutput()
	if err != nil {
		t.Fatalf("$ %s\n%v\n%s", line, err, out)
	}
	return string(out)
}

var readyLine = regexp.MustCompile(`listeners"?[=:]"?\["?(127\.0\.0\.1:\d+) starttls`)

// serve runs the server until the test ends.
func (s *adminShell) serve(t *testing.T) {
	t.Helper()
	var said watched
	cmd := s.command(t, "exec postern serve")
	cmd.Stderr = &said
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = patience
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	for end := time.After(patience); s.address == ""; {
		text, more := said.look()
		if m := readyLine.FindStringSubmatch(text); m != nil {
			s.address = m[1]
			break
		}
		select {
		case <-more:
		case <-end:
			t.Fatalf("the server is not ready:\n%s", text)
		}
	}
}

// session types the lines that begin with "$ " and compares what each prints with
// the lines behind it. "…" stands for anything within a line, or for whole lines when
// it is alone; how wide a column is does not matter.
func (s *adminShell) session(t *testing.T, lines []string) {
	t.Helper()
	for len(lines) > 0 {
		line, ok := strings.CutPrefix(lines[0], "$ ")
		if !ok {
			t.Fatalf("no command: %q", lines[0])
		}
		n := 1
		for n < len(lines) && !strings.HasPrefix(lines[n], "$ ") {
			n++
		}
		got := s.must(t, line)
		if !regexp.MustCompile(pattern(lines[1:n])).MatchString(got) {
			t.Errorf("$ %s\nprinted\n%s\nwanted\n%s", line, got, strings.Join(lines[1:n], "\n"))
		}
		lines = lines[n:]
	}
}

// pattern is the regular expression of what a document says is printed.
func pattern(lines []string) string {
	p := `^`
	for _, line := range lines {
		if line == "…" {
			p += `(?:.*\n)*`
			continue
		}
		indent := line[:len(line)-len(strings.TrimLeft(line, " "))]
		p += indent
		for i, word := range strings.Fields(line) {
			if i > 0 {
				p += `[ \t]*`
			}
			p += strings.ReplaceAll(regexp.QuoteMeta(word), "…", ".*")
		}
		p += `[ \t]*\n`
	}
	return p + `$`
}

// send is submit, and waits until the message was tried for all of its recipients.
func (s *adminShell) send(t *testing.T, words []string) {
	t.Helper()
	s.submit(t, words)
	to := words[4:]
	s.traced(t, to[len(to)-1], func(trace string) bool {
		return strings.Count(trace, " delivered ")+strings.Count(trace, " deferred ") == len(to)
	})
}

// traced waits until the trace of the mail to an address is as it has to be.
func (s *adminShell) traced(t *testing.T, to string, done func(trace string) bool) {
	t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		trace := s.must(t, "postern trace "+to)
		if done(trace) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("not so in time:\n%s", trace)
		}
	}
}

// submit sends a message: USER PASSWORD SENDER to RECIPIENT….
func (s *adminShell) submit(t *testing.T, words []string) {
	t.Helper()
	user, password, from, to := words[0], words[1], words[2], words[4:]
	conn, err := net.Dial("tcp", s.address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := smtp.NewClient(conn, "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	steps := []func() error{
		func() error { return c.StartTLS(&tls.Config{InsecureSkipVerify: true}) },
		func() error { return c.Auth(smtp.PlainAuth("", user, password, "127.0.0.1")) },
		func() error { return c.Mail(from) },
	}
	for _, rcpt := range to {
		steps = append(steps, func() error { return c.Rcpt(rcpt) })
	}
	steps = append(steps, func() error {
		w, err := c.Data()
		if err == nil {
			_, err = fmt.Fprintf(w, "From: <%s>\r\n%sSubject: x\r\n\r\nx\r\n", from, s.field)
		}
		if err == nil {
			err = w.Close()
		}
		return err
	})
	for i, step := range steps {
		if err := step(); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
	}
}
