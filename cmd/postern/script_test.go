package main

import (
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
					env.Setenv("GORACE", os.Getenv("GORACE"))
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
