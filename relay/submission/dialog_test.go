package submission

import (
	"bufio"
	"crypto/tls"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"postern/auth"
	"postern/internal/smtptest"
	"postern/policy/quota"
)

// TestDialogs plays every file under testdata/starttls on a clear connection and
// every one under testdata/implicit inside TLS. A line "# queued: N" says how many
// messages there must be at the end; without it, none.
func TestDialogs(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*/*.txt")
	if err != nil || len(files) < 40 {
		t.Fatalf("found only %d dialogs, %v", len(files), err)
	}
	for _, file := range files {
		kind := filepath.Base(filepath.Dir(file))
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		t.Run(kind+"/"+name, func(t *testing.T) {
			t.Parallel()
			ts := startServer(t, dialogLimits)
			ts.verifier.id = auth.Identity{Limits: []quota.Limit{{Kind: quota.Size, Max: 4000, Scope: quota.User}}}
			conn := dialFor(t, ts, kind)
			smtptest.Dialog{Vars: map[string]string{
				"plain":    plain("alice@example.com", "secret"),
				"bad":      plain("alice@example.com", "wrong"),
				"name":     "YWxpY2VAZXhhbXBsZS5jb20=",
				"password": "c2VjcmV0",
				"x900":     strings.Repeat("x", 900),
				"x4100":    strings.Repeat("x", 4100),
			}}.Run(t, conn, file)
			if want, got := queuedIn(t, file), ts.queue.len(); got != want {
				t.Errorf("%d messages are queued, want %d", got, want)
			}
		})
	}
}

// dialogLimits are small, so that files reach them.
func dialogLimits(cfg *Config) {
	cfg.Limits = Limits{
		Commands: 60, BadCommands: 5, FailedAuths: 2, RefusedRecipients: 4,
		Recipients: 3, MessageSize: 8000, HeaderSize: 2000,
	}
	cfg.Listeners[0].NormalizeBareLF, cfg.Listeners[0].TolerateBrackets = true, true
}

func dialFor(t *testing.T, ts *testServer, kind string) net.Conn {
	t.Helper()
	if kind == "starttls" {
		conn, err := net.Dial("tcp", ts.clear.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		return conn
	}
	conn, err := tls.Dial("tcp", ts.implicit.Addr().String(), insecure())
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

func queuedIn(t *testing.T, file string) int {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		if text, ok := strings.CutPrefix(in.Text(), "# queued: "); ok {
			n, err := strconv.Atoi(text)
			if err != nil {
				t.Fatalf("%s: %v", file, err)
			}
			return n
		}
	}
	return 0
}
