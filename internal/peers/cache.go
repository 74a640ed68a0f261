package peers

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// ErrUnavailable says that this machine cannot have the foreign programs.
var ErrUnavailable = errors.New("foreign mail programs are not available")

// A Cache is the folder that fetch.sh fills.
type Cache struct{ dir string }

// OpenCache finds the cache: $POSTERN_PEERS, or .cache/peers of the checkout that
// holds the working directory. Its error is [ErrUnavailable] where fetch.sh found
// no package manager.
func OpenCache() (Cache, error) {
	dir := os.Getenv("POSTERN_PEERS")
	if dir == "" {
		checkout, err := checkoutDir()
		if err != nil {
			return Cache{}, err
		}
		dir = filepath.Join(checkout, ".cache", "peers")
	}
	if _, err := os.Stat(filepath.Join(dir, "stamp")); err == nil {
		return Cache{dir}, nil
	}
	if reason, err := os.ReadFile(dir + "-unavailable"); err == nil {
		return Cache{}, fmt.Errorf("%w: %s", ErrUnavailable, strings.TrimSpace(string(reason)))
	}
	return Cache{}, fmt.Errorf("no foreign mail programs in %s: run `make peers`", dir)
}

// checkoutDir is the nearest parent of the working directory that holds go.mod.
func checkoutDir() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the checkout: %w", err)
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", errors.New("find the checkout: no go.mod above the working directory")
		}
		dir = parent
	}
}

func (c Cache) root() string { return filepath.Join(c.dir, "root") }

// lookPath finds a program in the cache, then on the machine.
func (c Cache) lookPath(program string) (string, error) {
	for _, dir := range []string{"usr/bin", "usr/sbin", "bin", "usr/lib/postfix/sbin"} {
		path := filepath.Join(c.root(), dir, program)
		if st, err := os.Stat(path); err == nil && !st.IsDir() {
			return path, nil
		}
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("%s is neither in the cache nor on the machine: %w", program, err)
	}
	return path, nil
}

// libraryDirs is where the unpacked programs find their libraries.
func (c Cache) libraryDirs() []string {
	dirs := []string{filepath.Join(c.root(), "usr/lib/postfix")}
	for _, pattern := range []string{"usr/lib", "usr/lib/*-linux-gnu*", "lib/*-linux-gnu*", "usr/lib/*-linux-gnu*/systemd"} {
		found, _ := filepath.Glob(filepath.Join(c.root(), pattern)) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return dirs
}

// perlModules is the PERL5LIB of the unpacked modules.
func (c Cache) perlModules() string {
	dirs := []string{filepath.Join(c.root(), "usr/share/perl5")}
	for _, pattern := range []string{"usr/lib/*/perl5/5.*", "usr/share/perl/5.*", "usr/lib/*/perl/5.*", "usr/lib/*/perl-base"} {
		found, _ := filepath.Glob(filepath.Join(c.root(), pattern)) // the pattern is well-formed
		dirs = append(dirs, found...)
	}
	return strings.Join(dirs, ":")
}

// environ is the environment in which the program at path runs. A program of the
// machine keeps the machine's libraries.
func (c Cache) environ(path string) []string {
	env := append(os.Environ(),
		"LC_ALL=C",
		"PERL5LIB="+c.perlModules(),
		"NODE_PATH="+filepath.Join(c.dir, "node/node_modules")+":"+filepath.Join(c.root(), "usr/share/nodejs"))
	if !strings.HasPrefix(path, c.root()) {
		return env
	}
	env = append(env, "LD_LIBRARY_PATH="+strings.Join(c.libraryDirs(), ":"))
	if filepath.Base(path) == "python3" {
		env = append(env, "PYTHONHOME="+filepath.Join(c.root(), "usr"))
	}
	return env
}

// Program finds a foreign program by its command name.
func (c Cache) Program(name string) (*Program, error) {
	path, err := c.lookPath(name)
	if err != nil {
		return nil, err
	}
	p := &Program{path: path, env: c.environ(path)}
	if strings.HasPrefix(path, c.root()) && name == "node" {
		p.dir = filepath.Join(c.root(), "usr") // see fetch.sh
	}
	return p, nil
}

// A Program is a foreign program that can be run.
type Program struct {
	path string
	env  []string
	dir  string // where it must run, if not here
}

// Command is the program with its arguments, in the environment that it needs.
func (p *Program) Command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path, args...)
	cmd.Env, cmd.Dir = p.env, p.dir
	return cmd
}

// Require is the program of that command name. The test is skipped on a machine
// that cannot have it, and fails where it could be there but is not.
func Require(t testing.TB, name string) *Program {
	t.Helper()
	cache := requireCache(t)
	program, err := cache.Program(name)
	if err != nil {
		t.Fatal(err)
	}
	return program
}

func requireCache(t testing.TB) Cache {
	t.Helper()
	cache, err := OpenCache()
	must(t, err)
	return cache
}

// must skips the test for what this machine cannot have, and fails it for what it could.
func must(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, ErrUnavailable) {
		t.Skip(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// hasModule returns an error if fetch.sh has not fetched a module for Node: ErrUnavailable on a machine
// without npm.
func (c Cache) hasModule(name string) error {
	if exists(filepath.Join(c.dir, "node/node_modules", name)) {
		return nil
	}
	if _, err := exec.LookPath("npm"); err != nil {
		return fmt.Errorf("%w: npm fetches %s: %w", ErrUnavailable, name, err)
	}
	return fmt.Errorf("no module %s in %s: run `make peers`", name, c.dir)
}

// exists says whether there is something at path.
func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
