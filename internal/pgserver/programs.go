package pgserver

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ErrNoPrograms means that PostgreSQL's server programs are not installed.
var ErrNoPrograms = errors.New("PostgreSQL's programs initdb and postgres are not installed" +
	" (Debian, Ubuntu: apt-get install postgresql; Fedora, RHEL: dnf install postgresql-server;" +
	" Alpine: apk add postgresql; macOS: brew install postgresql)")

// programs are the two that a server needs, of one installation.
type programs struct {
	initdb   string
	postgres string
}

// search is where the programs are looked for.
type search struct {
	path    string   // as in the environment
	folders []string // patterns, for what is out of PATH
	version func(postgres string) (int, error)
}

// everywhere is PATH and where distributions keep the programs out of it;
// internal/tools/install.sh looks there too.
func everywhere() search {
	return search{version: programVersion, path: os.Getenv("PATH"), folders: []string{
		"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
		"/usr/lib/postgresql*/bin",  // Gentoo, openSUSE, Alpine's variants
		"/usr/libexec/postgresql*",  // Alpine
		"/usr/pgsql-*/bin",          // the project's own packages for Fedora and RHEL
		"/usr/local/pgsql/bin",      // built from source
		"/opt/homebrew/opt/postgresql*/bin",
		"/usr/local/opt/postgresql*/bin",
	}}
}

// find looks in PATH and then in the folders, newest release first. A cluster
// can only be run by the release that made it, so when major is not 0 it must be
// that one.
func (s search) find(major int) (programs, error) {
	var found []string
	for _, dir := range s.candidates() {
		p := programs{filepath.Join(dir, "initdb"), filepath.Join(dir, "postgres")}
		if !runnable(p.initdb) || !runnable(p.postgres) {
			continue
		}
		if major == 0 {
			return p, nil
		}
		version, err := s.version(p.postgres)
		if err != nil {
			continue
		}
		if version == major {
			return p, nil
		}
		found = append(found, fmt.Sprintf("%s is %d", p.postgres, version))
	}
	if len(found) == 0 {
		return programs{}, ErrNoPrograms
	}
	return programs{}, fmt.Errorf("the data were made by PostgreSQL %d, which is not installed (%s)",
		major, strings.Join(found, ", "))
}

// candidates are the folders to look in, in order. A program in PATH may be a
// link into the folder that has them all.
func (s search) candidates() []string {
	var dirs []string
	for _, dir := range filepath.SplitList(s.path) {
		if name, err := filepath.EvalSymlinks(filepath.Join(dir, "initdb")); err == nil {
			dirs = append(dirs, filepath.Dir(name))
		}
	}
	var installed []string
	for _, pattern := range s.folders {
		matches, err := filepath.Glob(pattern)
		if err == nil {
			installed = append(installed, matches...)
		}
	}
	slices.SortStableFunc(installed, func(a, b string) int {
		return folderRelease(b) - folderRelease(a)
	})
	return append(dirs, installed...)
}

var number = regexp.MustCompile(`[0-9]+`)

// folderRelease is the major release that a folder's name speaks of, or 0.
func folderRelease(dir string) int {
	numbers := number.FindAllString(dir, -1)
	if len(numbers) == 0 {
		return 0
	}
	release, err := strconv.Atoi(numbers[len(numbers)-1])
	if err != nil {
		return 0
	}
	return release
}

func runnable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

// programVersion is the major release that the program says it is of.
func programVersion(postgres string) (int, error) {
	out, err := exec.Command(postgres, "-V").Output()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(number.FindString(string(out)))
}
