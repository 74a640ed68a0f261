package pgserver

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// install puts two programs into a folder.
func install(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"initdb", "postgres"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFindPrograms(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	install(t, filepath.Join(root, "lib/9/bin"))
	install(t, filepath.Join(root, "lib/15/bin"))
	install(t, filepath.Join(root, "lib/17/bin"))
	install(t, filepath.Join(root, "path"))
	if err := os.MkdirAll(filepath.Join(root, "lib/99/bin"), 0o755); err != nil { // a client's only
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(root, "links"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(root, "lib/15/bin/initdb"), filepath.Join(root, "links/initdb")); err != nil {
		t.Fatal(err)
	}
	lib := []string{filepath.Join(root, "lib/*/bin")}
	path, links, none := filepath.Join(root, "path"), filepath.Join(root, "links"), "/nonexistent"
	version := func(postgres string) (int, error) {
		if strings.HasPrefix(postgres, path) {
			return 16, nil
		}
		return folderRelease(postgres), nil
	}
	tests := []struct {
		name   string
		search search
		major  int
		want   string // folder below root, or part of the error
		err    error
	}{
		{"newest first, by number", search{"", lib, version}, 0, "lib/17/bin", nil},
		{"PATH comes before", search{path, lib, version}, 0, "path", nil},
		{"a link in PATH leads to its folder", search{links, lib, version}, 0, "lib/15/bin", nil},
		{"the cluster's own release", search{path, lib, version}, 15, "lib/15/bin", nil},
		{"nothing", search{none, nil, version}, 0, "apt-get install postgresql", ErrNoPrograms},
		{"nothing for a cluster either", search{none, nil, version}, 15, "apt-get install postgresql", ErrNoPrograms},
		{"another release only", search{path, nil, version}, 14, "made by PostgreSQL 14, which is not installed", nil},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := test.search.find(test.major)
			if err != nil {
				if test.err != nil && !errors.Is(err, test.err) {
					t.Errorf("error %v, want %v", err, test.err)
				}
				if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "\n") {
					t.Errorf("error %q, want one line with %q", err, test.want)
				}
				return
			}
			if want := filepath.Join(root, test.want, "postgres"); got.postgres != want {
				t.Errorf("found %s, want %s", got.postgres, want)
			}
			if filepath.Dir(got.initdb) != filepath.Dir(got.postgres) {
				t.Errorf("initdb is of another installation: %s", got.initdb)
			}
		})
	}
}

func TestProgramVersion(t *testing.T) {
	t.Parallel()
	p, err := everywhere().find(0)
	if err != nil {
		t.Fatal(err)
	}
	if version, err := programVersion(p.postgres); err != nil || version < 9 {
		t.Errorf("%s is of release %d, %v", p.postgres, version, err)
	}
}

func TestMayEnter(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	self := account{uid: os.Getuid(), gid: os.Getgid()}
	group := account{uid: os.Getuid() + 1, gid: os.Getgid()}
	stranger := account{uid: os.Getuid() + 1, gid: os.Getgid() + 1}
	tests := []struct {
		name string
		who  account
		mode os.FileMode
		want bool
	}{
		{"its own", self, 0o700, true},
		{"its own, closed", self, 0o077, false},
		{"its group's", group, 0o710, true},
		{"its group's, closed", group, 0o701, false},
		{"a stranger's", stranger, 0o701, true},
		{"a stranger's, closed", stranger, 0o750, false},
	}
	for _, test := range tests { // one folder, so not in parallel
		if err := os.Chmod(dir, test.mode); err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got := test.who.mayEnter(info); got != test.want {
			t.Errorf("%s: %t, want %t", test.name, got, test.want)
		}
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stranger.other = true
	inside := filepath.Join(dir, "inside")
	if err := os.Mkdir(inside, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := stranger.canReach(inside); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("a folder below a closed one: %v, want an error that names %s", err, dir)
	}
}
