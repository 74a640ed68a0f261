package smtptest

import (
	"encoding/base64"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func dial(t *testing.T, s *Server) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", s.Addr())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestDialogSession(t *testing.T) {
	t.Parallel()
	s := Start(t, Config{
		TLS:   NewCA(t).ServerConfig(t, "fake.test"),
		Users: map[string]string{"u": "p"},
	})
	plain := base64.StdEncoding.EncodeToString([]byte("\x00u\x00p"))
	Dialog{Vars: map[string]string{"plain": plain}}.Run(t, dial(t, s), "testdata/session.txt")

	got := s.WaitMessages(t, 1)[0]
	if want := "Subject: x\r\n\r\n.dot\r\nbare \n.\n\r\n"; string(got.Data) != want {
		t.Errorf("data %q, want %q", got.Data, want)
	}
	if want := []string{"b@example.com", `"x>y"@example.com`}; !cmp.Equal(want, got.To()) {
		t.Error(cmp.Diff(want, got.To()))
	}
	if got.From() != "a@example.com" || !got.TLS || got.User != "u" || got.Hello != "client.test" {
		t.Errorf("envelope %+v", got)
	}
}

// failing is a testing.TB that notes its end instead of failing.
type failing struct {
	testing.TB
	said string
}

func (f *failing) Fatalf(format string, args ...any) {
	f.said = fmt.Sprintf(format, args...)
	runtime.Goexit()
}
func (f *failing) Helper()        {}
func (f *failing) Cleanup(func()) {}

func TestDialogFails(t *testing.T) {
	t.Parallel()
	tests := []struct{ name, dialog, want string }{
		{"other text", "S: 220 other*\n", `:1: want "220 other*", got "220 fake.test ESMTP smtptest"`},
		{"closed", "S: 220 *\nC: QUIT\nS: 221 *\nS: 250 more\n", `:4: want "250 more"`},
		{"still open", "S: 220 *\nC: NOOP\nEOF\n", `:3: want the end, got "250 2.0.0 ok\r\n"`},
		{"unread", "S: 220 *\nC: NOOP\nC: NOOP\nS: 250 *\n", `unread: "250 2.0.0 ok\r\n"`},
		{"not a step", "X: y\n", `:1: not a step: "X: y"`},
		{"no value", "C: ${nothing}\n", `:1: ${nothing} has no value`},
		{"bad escape", "C! \\q\n", `:1: unknown escape \q`},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			s := Start(t, Config{})
			file := filepath.Join(t.TempDir(), "dialog.txt")
			if err := os.WriteFile(file, []byte(test.dialog), 0o600); err != nil {
				t.Fatal(err)
			}
			conn := dial(t, s)
			f := &failing{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				RunDialog(f, conn, file)
			}()
			<-done
			if !strings.Contains(f.said, test.want) {
				t.Errorf("said %q, want %q in it", f.said, test.want)
			}
		})
	}
}

func TestMatch(t *testing.T) {
	t.Parallel()
	tests := []struct {
		pattern, line string
		want          bool
	}{
		{"250 ok", "250 ok", true},
		{"250 ok", "250 okay", false},
		{"250-*", "250-SIZE 10", true},
		{"250-*", "250 SIZE 10", false},
		{"250 *", "250 ", true},
		{"*", "", true},
		{"a*b*c", "abc", true},
		{"a*b*c", "aXbYc", true},
		{"a*b*c", "ac", false},
		{"ab*ba", "aba", false},
		{"a**c", "abc", true},
		{"a*x*c", "abbc", false},
	}
	for _, test := range tests {
		if got := match(test.pattern, test.line); got != test.want {
			t.Errorf("match(%q, %q) = %v", test.pattern, test.line, got)
		}
	}
}
