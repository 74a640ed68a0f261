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

// folders are where distributions keep the programs out of PATH.
var folders = []string{
	"/usr/lib/postgresql/*/bin", // Debian, Ubuntu
	"/usr/lib/postgresql*/bin",  // Gentoo, openSUSE, Alpine's variants
	"/usr/libexec/postgresql*",  // Alpine
	"/usr/pgsql-*/bin",          // the project's own packages for Fedora and RHEL
	"/usr/local/pgsql/bin",      // built from source
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
}

// findPrograms looks in PATH and then in the distributions' folders, newest
// release first. A cluster can only be run by the release that made it, so when
// major is not 0 it must be that one.
func findPrograms(major int) (programs, error) {
	var found []string
	for _, dir := range candidates() {
		p := programs{filepath.Join(dir, "initdb"), filepath.Join(dir, "postgres")}
		if !runnable(p.initdb) || !runnable(p.postgres) {
			continue
		}
		if major == 0 {
			return p, nil
		}
		version, err := programVersion(p.postgres)
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
// link to a folder that has the rest.
func candidates() []string {
	var dirs []string
	if name, err := exec.LookPath("initdb"); err == nil {
		if name, err = filepath.EvalSymlinks(name); err == nil {
			dirs = append(dirs, filepath.Dir(name))
		}
	}
	var installed []string
	for _, pattern := range folders {
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
	release, err := strconv.Atoi(number.FindString(dir))
	if err != nil {
		return 0
	}
	return release
}

func runnable(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0
}

func programVersion(postgres string) (int, error) {
	out, err := exec.Command(postgres, "-V").Output()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(number.FindString(string(out)))
}
