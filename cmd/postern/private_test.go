package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/cmd/postern/database"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// A server that finds its private database in use says immediately what it waits for, and
// goes on when the other process is done.
func TestWaitForPrivateDatabase(t *testing.T) {
	t.Parallel()
	folder := pgtest.Dir(t)
	other := pgtest.Server(t, pgserver.Config{Dir: folder})
	dir := t.TempDir()
	s := &site{dir: dir, config: filepath.Join(dir, "postern.toml")}
	if err := os.WriteFile(s.config, []byte("hostname = \"relay.test\"\n[database]\nprivate = \""+folder+"\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	d := s.start(t, "serve", "--only", "delivery")
	d.await(t, &d.stderr, `(?m)^postern: waiting for the process that uses the private database in `)
	if err := other.Stop(); err != nil {
		t.Fatal(err)
	}
	d.await(t, &d.stderr, `postern is ready`)
}

// A private database that stays in use is an error that says what can be done.
func TestPrivateDatabaseInUse(t *testing.T) {
	t.Parallel()
	folder := pgtest.Dir(t)
	pgtest.Server(t, pgserver.Config{Dir: folder})
	_, err := database.AwaitPrivate(t.Context(), folder)
	if !errors.Is(err, pgserver.ErrInUse) || !strings.Contains(err.Error(), "stop it, or give this node a folder of its own") {
		t.Errorf("%v", err)
	}
}
