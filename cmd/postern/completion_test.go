package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/internal/peers"
	"postern/internal/pgtest"
)

// trap is a user's name that would run a command if a shell evaluated it, and the file
// that this would leave. Names are lower-case and without spaces.
func trap(dir string) (name, file string) {
	file = filepath.Join(dir, "ran")
	return "zed$(id>" + file + ")", file
}

// Two users have a command in their names. In a shell with the packages that people
// have, TAB TAB at the letters before it puts nothing into the line, and runs nothing.
func TestM5Shells(t *testing.T) {
	t.Parallel()
	db := pgtest.New(t)
	dir, err := os.MkdirTemp("/tmp", "postern-m5-") // short, in lower case: it is in a name
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	name, ran := trap(dir)
	for _, user := range []string{name + "1@example.com", name + "2@example.com", "zebra1@example.com", "zebra2@example.com"} {
		shell(t, db, exitDone, "user", "add", user)
	}
	program := "#!/bin/sh\nPOSTERN_TEST_AS_PROGRAM=1 exec '" + os.Args[0] + "' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "postern"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, sh := range peers.Shells() {
		t.Run(sh, func(t *testing.T) {
			t.Parallel()
			script := filepath.Join(dir, sh)
			if err := os.WriteFile(script, []byte(shell(t, db, exitDone, "completion", sh)), 0o600); err != nil {
				t.Fatal(err)
			}
			s := peers.StartShell(t, sh, t.TempDir(), script, "PATH="+dir+":"+os.Getenv("PATH"), "POSTERN_DATABASE_URL="+db.URL)
			s.Type("postern user show zebra1\t\n") // so completion is there
			s.Await(`USER +zebra1@example\.com`)
			s.Sync()
			for _, line := range []string{"postern user show zed", "postern user show ze", "postern sender list ", "postern queue list --user zed"} {
				s.Type(line + "\t\t\t")
				if text := s.Sync(); strings.Contains(text, "id>") {
					t.Errorf("%s TAB TAB offers the name: %q", line, text)
				}
			}
			if text, err := os.ReadFile(ran); err == nil {
				t.Errorf("a shell ran the command in a user's name: %s", text)
			}
		})
	}
}

func TestM5Offered(t *testing.T) {
	t.Parallel()
	found := []string{"zed$(id)1@x", "zed`id`", "zed;id", "zed id", "zed'", `zed"`, `zed\`, "zed|id", "zed&", "zed<x", "zed>x", "zed*", "zed?", "zed[a]", "zed{a,b}",
		"zed~", "zed!", "zed#", "zed^", "zedé", "zed\u200b", "zed\n", "zed\x1b", "zed(id)",
		"zed@%+=:,./_-9", "zedA", "zed1\tzed$(id) of Zoë's <office>", "zed2", "other"}
	got := offered(found, []string{"zed2"}, "zed")
	want := []string{"zed@%+=:,./_-9", "zedA", "zed1\tzed??id? of Zoë?s ?office?"}
	if !slices.Equal(got, want) {
		t.Errorf("offered are %q, want %q", got, want)
	}
	if got := offered([]string{"", "a"}, nil, ""); !slices.Equal(got, []string{"a"}) {
		t.Errorf("offered are %q", got)
	}
}

// The admin is told of a name that completion leaves out when there is still a choice.
func TestM5NamesAreWarnedOf(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	const warning = "warning: quote zed$(id)@example.com in commands; completion does not offer it"
	file := filepath.Join(s.dir, "users.csv")
	if err := os.WriteFile(file, []byte("name\nzed$(id)@example.com\nfine@example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"user", "import", file, "--dry-run"}, {"user", "import", file}, {"user", "add", "zed$(id)@example.com", "--if-missing"},
	} {
		_, errs, err := s.postern(t, "", args...)
		if err != nil || !strings.Contains(errs, warning) {
			t.Errorf("%q: %v, %q", args, err, errs)
		}
	}
	if _, errs, err := s.postern(t, "", "user", "add", "fine.too+x_y-z%1@example.com"); err != nil || errs != "" {
		t.Errorf("a name that is a word: %v, %q", err, errs)
	}
}
