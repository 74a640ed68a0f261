package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"postern/cmd/postern/man"

	"github.com/spf13/cobra"
)

// Every command that people see has a page, whose requests are those of man(7), and that
// takes the place of a link instead of following it.
func TestL2Manual(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	aim := filepath.Join(t.TempDir(), "aim")
	for name, file := range map[string]string{"postern.1": aim, "postern-serve.1": "postern-user.1"} {
		if err := os.Symlink(file, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	folder, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer folder.Close()
	root := (&app{}).root()
	n, err := man.Write(root, "VERSION", folder)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(aim); err == nil {
		t.Error("a link was followed")
	}
	requests := regexp.MustCompile(`^\.(TH|SH|B|PP|TP|nf|fi)\s`)
	seen := 0
	var look func(cmd *cobra.Command)
	look = func(cmd *cobra.Command) {
		if cmd.Hidden || cmd.Name() == "help" {
			return
		}
		seen++
		page, err := os.ReadFile(filepath.Join(dir, strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(page)) {
			if (line[0] == '.' && !requests.MatchString(line)) || line[0] == '\'' {
				t.Errorf("%s: %q is no request", cmd.CommandPath(), line)
			}
		}
		if strings.Count(string(page), "\n.nf\n") != strings.Count(string(page), "\n.fi\n") {
			t.Errorf("%s: a block does not end", cmd.CommandPath())
		}
		for _, sub := range cmd.Commands() {
			look(sub)
		}
	}
	look(root)
	if seen != n || n < 40 {
		t.Errorf("%d pages for %d commands", n, seen)
	}
}
