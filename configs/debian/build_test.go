package debian_test

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"postern/internal/longtest"
	"postern/internal/machine"
)

// stamp is the time in the packages that the tests build.
const stamp = "SOURCE_DATE_EPOCH=1790000000"

// run runs a program to its end and returns what it wrote to standard output.
func run(t *testing.T, env []string, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 6*machine.Patience) // it may be a compiler on a busy machine
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &errs)
	}
	return string(out)
}

// needDpkg skips where there is no dpkg: a package for Debian cannot be tried there.
func needDpkg(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("this machine has no dpkg-deb")
	}
}

// built is the package of version v1.2.0, made once.
var built struct {
	once sync.Once
	dir  string
	deb  string
}

func TestMain(m *testing.M) {
	machine.Inside(map[string]func() error{"install": live})
	code := m.Run()
	if built.dir != "" {
		_ = os.RemoveAll(built.dir)
	}
	os.Exit(code)
}

func pack(t *testing.T) string {
	t.Helper()
	needDpkg(t)
	built.once.Do(func() {
		var err error
		if built.dir, err = os.MkdirTemp("", "postern-deb-"); err != nil {
			t.Fatal(err)
		}
		built.deb = build(t, built.dir)
	})
	if built.deb == "" {
		t.Fatal("another test could not build the package")
	}
	return built.deb
}

func build(t *testing.T, dir string) string {
	t.Helper()
	out := run(t, []string{stamp, "COMPRESSION=gzip", "VERSION=v1.2.0", "COMMIT=0123456789abcdef0123456789abcdef01234567"}, "sh", "build.sh", dir)
	return strings.TrimSpace(out)
}

// TestMachines compiles the program for machines whose words are of other sizes; it takes
// a minute or two for each, and so runs only when POSTERN_LONG is set.
func TestMachines(t *testing.T) {
	if !longtest.Run() {
		return // every run compiles for its own machine
	}
	for _, arch := range []string{"386", "arm", "arm64"} {
		run(t, []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=" + arch}, "go", "build", "-o", filepath.Join(t.TempDir(), "postern"), "postern/cmd/postern")
	}
}

// A Debian version sorts as the releases do.
func TestVersion(t *testing.T) {
	t.Parallel()
	needDpkg(t)
	last := ""
	for _, v := range []struct{ git, debian string }{
		{"abcdef0", "0~20260921141320.gabcdef0"},
		{"abcdef0-dirty", "0~20260921141320.gabcdef0+dirty"},
		{"v1.2.0-rc1", "1.2.0~rc1"},
		{"v1.2.0-rc1-3-gabcdef0", "1.2.0~rc1+3.gabcdef0"},
		{"v1.2.0", "1.2.0"},
		{"v1.2.0-dirty", "1.2.0+dirty"},
		{"v1.2.1-14-gabcdef0", "1.2.1+14.gabcdef0"},
		{"1.10.0", "1.10.0"},
	} {
		got := strings.TrimSpace(run(t, []string{stamp, "VERSION=" + v.git}, "sh", "build.sh", "--version"))
		if got != v.debian {
			t.Errorf("%s is Debian's %s, want %s", v.git, got, v.debian)
		}
		if last != "" {
			run(t, nil, "dpkg", "--compare-versions", got, "gt", last)
		}
		last = got
	}
}

// The same sources make the same package; that is what lets anybody check that a
// package was made from them.
func TestReproducible(t *testing.T) {
	t.Parallel()
	first, err := os.ReadFile(pack(t))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(build(t, t.TempDir()))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Errorf("two packages of the same sources differ; their lengths are %d and %d", len(first), len(second))
	}
}

func TestContents(t *testing.T) {
	t.Parallel()
	deb := pack(t)
	if name := filepath.Base(deb); !strings.HasPrefix(name, "postern_1.2.0_") {
		t.Errorf("the package is called %s", name)
	}
	var paths []string
	for line := range strings.Lines(run(t, nil, "dpkg-deb", "--contents", deb)) {
		f := strings.Fields(line)
		if f[1] != "root/root" {
			t.Errorf("not root's: %s", line)
		}
		if len(f[0]) != 10 || f[0][8] == 'w' || f[0][5] == 'w' || strings.ContainsAny(f[0], "sStT") {
			t.Errorf("mode: %s", line)
		}
		paths = append(paths, strings.TrimPrefix(f[5], "."))
	}
	for _, path := range []string{
		"/usr/bin/postern", "/etc/postern/postern.toml",
		"/usr/lib/systemd/system/postern.service", "/usr/lib/systemd/system/postern-submission.socket",
		"/usr/lib/systemd/system/postern-submissions.socket",
		"/usr/share/man/man1/postern.1.gz", "/usr/share/man/man1/postern-user-add.1.gz",
		"/usr/share/bash-completion/completions/postern", "/usr/share/zsh/vendor-completions/_postern",
		"/usr/share/fish/vendor_completions.d/postern.fish",
		"/usr/share/doc/postern/copyright", "/usr/share/doc/postern/changelog.gz",
		"/usr/share/doc/postern/sbom.cdx.json", "/usr/share/doc/postern/LICENSES.gz",
		"/usr/share/doc/postern/docs/install.md", "/usr/share/doc/postern/examples/postern.toml",
	} {
		if !slices.Contains(paths, path) {
			t.Errorf("%s is missing", path)
		}
	}
	dir := t.TempDir()
	run(t, nil, "dpkg-deb", "--raw-extract", deb, dir)
	if got, err := os.ReadFile(filepath.Join(dir, "DEBIAN/conffiles")); err != nil || string(got) != "/etc/postern/postern.toml\n" {
		t.Errorf("conffiles: %q, %v", got, err)
	}
	said := run(t, nil, filepath.Join(dir, "usr/bin/postern"), "version", "--json")
	for _, want := range []string{`"version": "v1.2.0"`, `"commit": "0123456789abcdef0123456789abcdef01234567"`, `"schema": `} {
		if !strings.Contains(said, want) {
			t.Errorf("no %s in %s", want, said)
		}
	}
	for _, script := range []string{"build.sh", "postinst", "prerm", "postrm"} {
		run(t, nil, "sh", "-n", script)
	}
}
