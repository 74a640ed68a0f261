package main

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"postern/internal/pgtest"
)

// Each file of testdata/script is a session of an admin at the shell. Scripts
// that begin with "db-" get a migrated database of their own, the others none.
func TestScripts(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/script/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			testscript.Run(t, testscript.Params{
				Files:               []string{file},
				RequireExplicitExec: true,
				Cmds:                scriptCommands,
				Setup: func(env *testscript.Env) error {
					env.Setenv("POSTERN_SECRET_KEY_FILE", filepath.Join(env.WorkDir, "secret.key"))
					if len(name) > 3 && name[:3] == "db-" {
						env.Setenv("POSTERN_DATABASE_URL", pgtest.New(t).URL)
					}
					if len(name) > 6 && name[:6] == "empty-" {
						env.Setenv("POSTERN_DATABASE_URL", pgtest.Empty(t).URL)
					}
					return nil
				},
			})
		})
	}
}

// The file that explains every key must be one that the program takes, with the
// defaults that it claims.
func TestConfigFileHasEveryDefault(t *testing.T) {
	t.Parallel()
	got, err := readConfig("../../configs/postern.toml")
	if err != nil {
		t.Fatal(err)
	}
	want := defaultConfig()
	for _, pair := range []struct {
		name      string
		got, want any
	}{
		{"submission", got.Submission, want.Submission},
		{"queue", got.Queue, want.Queue},
		{"delivery", got.Delivery, want.Delivery},
		{"log", got.Log, want.Log},
		{"admin", got.Admin, want.Admin},
		{"database.max_connections", got.Database.MaxConnections, want.Database.MaxConnections},
	} {
		if fmt.Sprint(pair.got) != fmt.Sprint(pair.want) {
			t.Errorf("%s: the file says %+v, the default is %+v", pair.name, pair.got, pair.want)
		}
	}
}

// Every key of the configuration has its line in the file that explains them.
func TestConfigFileHasEveryKey(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../../configs/postern.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range configKeys(t) {
		if !hasKey(string(text), key) {
			t.Errorf("configs/postern.toml does not explain %s", key)
		}
	}
}
