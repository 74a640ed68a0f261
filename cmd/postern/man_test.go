package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

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
	n, err := writeManual(root, folder)
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
		page, err := os.ReadFile(filepath.Join(dir, manName(cmd)+".1"))
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

func TestManPage(t *testing.T) {
	t.Parallel()
	cmd := &cobra.Command{
		Use: "x FILE", Short: `a \ b`, Run: func(*cobra.Command, []string) {},
		Long: "One.\n'Two'.\n\nThree:\n  a  b\n  -c\nfour", Example: "  x -n",
	}
	cmd.Flags().String("to", "here", "`PLACE` to put it")
	const want = `.TH X 1 "" "postern VERSION" Postern
.SH NAME
x \- a \e b
.SH SYNOPSIS
.B x
FILE [flags]
.SH DESCRIPTION
.PP
One.
\&'Two'.
.PP
Three:
.nf
  a  b
  \-c
.fi
four
.SH OPTIONS
.TP
.B \-\-to PLACE
PLACE to put it (default here)
.SH EXAMPLES
.PP
.nf
  x \-n
.fi
`
	got := strings.Replace(manPage(cmd), roff(versionString()), "VERSION", 1)
	if got != want {
		t.Errorf("the page is\n%s", got)
	}
}
