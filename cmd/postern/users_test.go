package main

import (
	"bytes"
	"context"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"postern/auth"
	"postern/cmd/postern/config"
	"postern/internal/pgtest"
)

// shell runs a command on a database and wants its status.
func shell(t *testing.T, db *pgtest.DB, status int, args ...string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	got := run(t.Context(), args, []string{"POSTERN_DATABASE_URL=" + db.URL, "SUDO_USER=carol"}, strings.NewReader(""), &stdout, &stderr)
	if got != status {
		t.Fatalf("postern %v: status %d, want %d\n%s%s", args, got, status, &stdout, &stderr)
	}
	return stdout.String()
}

// What takes a user's mail away and what keeps the user out are there together or
// not at all.
func TestDisableAndRevokeAreOneWithTheHold(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	shell(t, db, exitDone, "user", "add", "alice@example.com")
	if _, err := db.Pool.Exec(t.Context(), `alter table hold rename to away`); err != nil {
		t.Fatal(err)
	}
	shell(t, db, exitFailed, "user", "disable", "alice@example.com")
	shell(t, db, exitFailed, "credential", "revoke", "1")
	var untouched bool
	err := db.Pool.QueryRow(t.Context(), `
		select (select enabled from app_user) and not exists (select from credential where revoked_at is not null)
			and not exists (select from audit where action <> 'user add')`).Scan(&untouched)
	if err != nil || !untouched {
		t.Fatalf("something stayed of what failed: %v", err)
	}
}

// The nodes are told, and told when what they read is there.
func TestChangesAreAnnounced(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	shell(t, db, exitDone, "user", "add", "alice@example.com")
	conn, err := pgx.Connect(t.Context(), db.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "listen "+auth.Channel); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, tt := range []struct {
		payload string
		args    []string
	}{
		{"1", []string{"sender", "allow", "alice@example.com", "*@example.com"}},
		{"1", []string{"limit", "set", "alice@example.com", "--size", "1MB"}},
		{"0", []string{"limit", "set", "--default", "--size", "1MB"}},
		{"1", []string{"credential", "revoke", "1"}},
		{"1", []string{"user", "disable", "alice@example.com"}},
		{"1", []string{"user", "enable", "alice@example.com"}},
		{"1", []string{"user", "remove", "alice@example.com"}},
	} {
		shell(t, db, exitDone, tt.args...)
		n, err := conn.WaitForNotification(ctx)
		if err != nil || n.Payload != tt.payload {
			t.Fatalf("%v: %+v, %v", tt.args, n, err)
		}
	}
}

func TestActor(t *testing.T) {
	t.Parallel()
	root := os.Geteuid() == 0
	who := (&app{source: config.Source{Env: map[string]string{"SUDO_USER": "carol"}}}).actor()
	if (who == "carol") != root {
		t.Errorf("behind sudo, root %v: %s", root, who)
	}
	if who := (&app{}).actor(); who == "" || who == "carol" {
		t.Errorf("without sudo: %q of %s", who, strconv.Itoa(os.Getuid()))
	}
}

// A name cannot steer the terminal of the admin who lists it.
func TestNamesArePrinted(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	shell(t, db, exitDone, "user", "add", "alice@example.com")
	shell(t, db, exitDone, "credential", "add", "alice@example.com", "--generate", "--label", "a\x1b[31mb\nc")
	shell(t, db, exitDone, "user", "disable", "alice@example.com", "--reason", "x\x1b]0;y\x07")
	for _, args := range [][]string{
		{"user", "list"}, {"user", "show", "alice@example.com"}, {"credential", "list", "alice@example.com"}, {"audit"},
		{"__complete", "credential", "revoke", ""},
	} {
		if out := shell(t, db, exitDone, args...); strings.ContainsAny(out, "\x1b\x07") {
			t.Errorf("%v prints %q", args, out)
		}
	}
}
