package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"postern/internal/smtptest"
)

// onTerminal runs a command whose output is a terminal of that many columns.
func (s *site) onTerminal(t *testing.T, width int, args ...string) string {
	t.Helper()
	return s.atTerminal(t, width, func(cmd *exec.Cmd, terminal *os.File) { cmd.Stdout = terminal }, args...)
}

// atTerminal runs a command with a terminal, and returns what is seen on it.
func (s *site) atTerminal(t *testing.T, width int, connect func(cmd *exec.Cmd, terminal *os.File), args ...string) string {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer ours.Close()
	fd := int(ours.Fd())
	n, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		err = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: uint16(width)})
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := s.command(ctx, args...)
	connect(cmd, theirs)
	out := make(chan string)
	go func() {
		var text strings.Builder
		block := make([]byte, 4096)
		for { // EIO when nobody has the other end
			n, err := ours.Read(block)
			text.Write(block[:n])
			if err != nil {
				out <- text.String()
				return
			}
		}
	}()
	err = cmd.Run()
	_ = theirs.Close()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return strings.ReplaceAll(<-out, "\r\n", "\n")
}

// What admins look at most fits their terminal: no line is broken by it, and nothing is cut elsewhere.
func TestTablesFitTheTerminal(t *testing.T) {
	t.Parallel()
	server := smtptest.Start(t, smtptest.Config{})
	server.On(smtptest.PhaseRcpt, smtptest.Always(smtptest.Reply("451 4.2.0 <bob@example.net>: Recipient address rejected: Greylisted, see https://postgrey.example.net/")))
	s := installSite(t)
	s.must(t, "", "upstream", "add", "out", "--host", server.Addr(), "--tls", "none", "--budget", "messages 3000/m, sessions 3", "--rewrite-sender", "relay@example.com")
	s.must(t, "secret", "upstream", "add", "m365", "--preset", "m365", "--username", "relay@the-long-name-of-a-tenant.example.com", "--password-stdin")
	s.must(t, "", "upstream", "pause", "m365")
	s.must(t, "", "route", "add", "--sender-domain", "news.the-long-name-of-a-tenant.example.com", "--recipient-domain", "*.example.net", "--via", "m365,out")
	s.must(t, "", "route", "add", "--via", "out,mx")
	s.must(t, "secret word", "user", "add", "the.long.name.of.somebody@the-long-name-of-a-tenant.example.com", "--password-stdin", "--sender", "*@example.com", "--sender", "*@*.example.com")
	s.serve(t)
	s.asGoDoes(t, plainMail, "bob@example.net")
	server.WaitPhase(t, smtptest.PhaseRcpt, 1)
	for _, look := range []struct {
		width int
		at    [][]string
	}{
		{80, [][]string{
			{"upstream", "list"}, {"upstream", "show", "m365"}, {"upstream", "show", "out"}, {"route", "list"}, {"queue", "shape"}, {"queue", "list"}, {"trace", "bob@example.net"},
			{"user", "list"}, {"user", "show", "alice@example.com"}, {"check", "--only", "route,account"},
		}},
		{100, [][]string{{"upstream", "reply", "list", "m365"}, {"user", "list"}}},
		{140, [][]string{{"upstream", "list"}, {"queue", "list"}}},
	} {
		for _, args := range look.at {
			out := s.onTerminal(t, look.width, args...)
			for line := range strings.Lines(out) {
				if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > look.width {
					t.Errorf("%s at %d columns has a line of %d: %s", strings.Join(args, " "), look.width, n, line)
				}
			}
			if strings.Count(out, "\n") < 2 {
				t.Errorf("%s shows nothing:\n%s", strings.Join(args, " "), out)
			}
		}
	}
	if out := s.must(t, "", "queue", "shape"); !strings.Contains(out, "https://postgrey.example.net/") {
		t.Errorf("cut where there is no terminal:\n%s", out)
	}
}
