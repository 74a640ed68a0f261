package owned_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/internal/owned"
)

// stranger is a user of the machine that is neither root nor we.
const stranger = 54321

// needRoot skips what takes the files of another user.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// file makes a file of that mode, whatever the umask, and returns its path.
func file(t *testing.T, path string, mode fs.FileMode) string {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte("secret"), 0o600))
	must(t, os.Chmod(path, mode))
	return path
}

func wantFault(t *testing.T, err error, want string) {
	t.Helper()
	var fault *owned.Fault
	if !errors.As(err, &fault) || !strings.Contains(fault.Error(), want) || strings.Contains(fault.Error(), "\n") {
		t.Errorf("error %v, want a fault with %q", err, want)
	}
}

// One rule for the file of every secret: what everybody may change is refused, what
// everybody may read is told.
func TestH2SecretsByMode(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for _, test := range []struct {
		mode             fs.FileMode
		refused, exposed string
	}{
		{0o600, "", ""}, {0o400, "", ""}, {0o640, "", ""}, {0o440, "", ""}, {0o660, "", ""},
		{0o644, "", "mode 0644 lets everybody read it; chmod 600 it"},
		{0o604, "", "mode 0604 lets everybody read it"},
		{0o666, "mode 0666 lets everybody read and change it; chmod 600 it", ""},
		{0o602, "mode 0602 lets everybody change it", ""},
		{0o777, "mode 0777 lets everybody read and change it", ""},
	} {
		path := file(t, filepath.Join(dir, test.mode.String()), test.mode)
		var told error
		text, err := owned.ReadSecret(path, func(err error) { told = err })
		switch {
		case test.refused != "":
			wantFault(t, err, test.refused)
		case err != nil || string(text) != "secret":
			t.Errorf("mode %v: %q, %v", test.mode, text, err)
		}
		switch {
		case test.exposed != "":
			wantFault(t, told, test.exposed)
			_, err := owned.ReadSecret(path, nil)
			wantFault(t, err, test.exposed)
		case told != nil:
			t.Errorf("mode %v: told %v", test.mode, told)
		}
	}
}

func TestH2FilesThatAreNoSecret(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if text, err := owned.Read(file(t, filepath.Join(dir, "public"), 0o644)); err != nil || string(text) != "secret" {
		t.Errorf("%q, %v", text, err)
	}
	_, err := owned.Read(file(t, filepath.Join(dir, "shared"), 0o666))
	wantFault(t, err, "mode 0666 lets everybody change it")
	_, err = owned.Read(filepath.Join(dir, "none"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

// To open a pipe would wait for somebody who writes into it.
func TestH2OnlyRegularFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	must(t, syscall.Mkfifo(pipe, 0o600))
	for _, path := range []string{pipe, dir} {
		_, err := owned.ReadSecret(path, nil)
		wantFault(t, err, "not a regular file")
	}
}

// Kubernetes mounts a secret as a link to a link, into a folder with the sticky bit that
// everybody may write to, and the files are root's.
func TestH2SecretsOfKubernetes(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o777|fs.ModeSticky))
	file(t, filepath.Join(dir, "..2026_01_02", "token"), 0o440)
	must(t, os.Symlink("..2026_01_02", filepath.Join(dir, "..data")))
	must(t, os.Symlink("..data/token", filepath.Join(dir, "token")))
	if text, err := owned.ReadSecret(filepath.Join(dir, "token"), nil); err != nil || string(text) != "secret" {
		t.Errorf("%q, %v", text, err)
	}
}

func TestH2SecretsByOwner(t *testing.T) {
	t.Parallel()
	needRoot(t)
	dir := t.TempDir()
	mounted := file(t, filepath.Join(dir, "folder", "mounted"), 0o600)
	must(t, os.Chown(mounted, stranger, stranger))
	if _, err := owned.ReadSecret(mounted, nil); err != nil {
		t.Errorf("a file that its folder's owner put there: %v", err)
	}
	planted := file(t, filepath.Join(dir, "shared", "planted"), 0o600)
	must(t, os.Chown(planted, stranger, stranger))
	must(t, os.Chmod(filepath.Dir(planted), 0o777|fs.ModeSticky))
	_, err := owned.Read(planted)
	wantFault(t, err, "belongs to user 54321, in a folder that everybody may write to")

	wantFault(t, owned.Mine(mounted), "belongs to user 54321 and not to user root")
	must(t, owned.Mine(mounted, stranger))
}

func TestH2FoldersByMode(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		above fs.FileMode
		mode  fs.FileMode
		want  string
	}{
		{"ours", 0o755, 0o700, ""},
		{"below a sticky one", 0o777 | fs.ModeSticky, 0o755, ""},
		{"below a shared one", 0o777, 0o700, "above: mode 0777 lets others put something else into it"},
		{"sticky itself", 0o755, 0o777 | fs.ModeSticky, "ours: mode 0777 lets others"},
		{"shared", 0o755, 0o707, "ours: mode 0707 lets others"},
	} {
		above := filepath.Join(t.TempDir(), "above")
		dir := filepath.Join(above, "ours")
		must(t, os.MkdirAll(dir, 0o755))
		must(t, os.Chmod(dir, test.mode))
		must(t, os.Chmod(above, test.above))
		root, err := owned.Open(dir)
		if test.want != "" {
			wantFault(t, err, test.want)
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		root.Close()
	}
}

func TestH2FoldersByOwner(t *testing.T) {
	t.Parallel()
	needRoot(t)
	top := t.TempDir()
	theirs := filepath.Join(top, "theirs")
	below := filepath.Join(theirs, "below")
	must(t, os.MkdirAll(below, 0o700))
	must(t, os.Chown(theirs, stranger, stranger))
	if root, err := owned.Open(theirs, stranger); err != nil {
		t.Errorf("a known account's: %v", err)
	} else {
		root.Close()
	}
	_, err := owned.Open(theirs)
	wantFault(t, err, "theirs: it belongs to user 54321 and not to user root")
	_, err = owned.Open(below, stranger)
	wantFault(t, err, "theirs: it belongs to user 54321")

	group := filepath.Join(top, "group")
	must(t, os.Mkdir(group, 0o700))
	must(t, os.Chown(group, 0, stranger))
	must(t, os.Chmod(group, 0o770))
	_, err = owned.Open(group)
	wantFault(t, err, "mode 0770 lets others")
}

// Links are followed when they are ours: an admin may put a folder on another disk.
func TestH2LinksInAPath(t *testing.T) {
	t.Parallel()
	top, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	must(t, os.MkdirAll(filepath.Join(top, "disk", "folder"), 0o700))
	must(t, os.Symlink("../"+filepath.Base(top)+"/disk", filepath.Join(top, "link")))
	must(t, os.Symlink(filepath.Join(top, "link", "folder"), filepath.Join(top, "last")))
	must(t, os.Symlink("round", filepath.Join(top, "round")))
	for _, path := range []string{"link/folder", "last", "disk/./folder/"} {
		root, err := owned.Open(filepath.Join(top, path))
		if err != nil {
			t.Errorf("%s: %v", path, err)
			continue
		}
		if want := filepath.Join(top, "disk", "folder"); root.Name() != want {
			t.Errorf("%s is %s, want %s", path, root.Name(), want)
		}
		root.Close()
	}
	if _, err := owned.Open(filepath.Join(top, "round")); !errors.Is(err, syscall.ELOOP) {
		t.Errorf("a link to itself: %v", err)
	}
	if _, err := owned.Path(filepath.Join(top, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	if os.Geteuid() != 0 {
		return
	}
	must(t, os.Lchown(filepath.Join(top, "link"), stranger, stranger))
	_, err = owned.Path(filepath.Join(top, "link"))
	wantFault(t, err, "link: it belongs to user 54321")
}

// What another user put into a folder is neither followed nor changed.
func TestH2FilesInAFolder(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	victim := file(t, filepath.Join(dir, "victim"), 0o600)
	in := filepath.Join(dir, "in")
	inner := file(t, filepath.Join(in, "inner"), 0o600)
	must(t, os.Symlink(victim, filepath.Join(in, "out")))
	must(t, os.Symlink("inner", filepath.Join(in, "round")))
	must(t, os.Symlink(filepath.Join(dir, "made"), filepath.Join(in, "dangling")))
	must(t, os.Link(victim, filepath.Join(in, "second")))
	must(t, syscall.Mkfifo(filepath.Join(in, "pipe"), 0o600))
	folder, err := owned.Open(in)
	must(t, err)
	defer folder.Close()
	for name, want := range map[string]string{
		"out": "not a regular file", "round": "not a regular file", "dangling": "not a regular file",
		"pipe": "not a regular file", "second": "it has another name elsewhere",
	} {
		_, err := owned.OpenFile(folder, name, os.O_RDWR|os.O_CREATE, 0o600)
		wantFault(t, err, name+": "+want)
		must(t, owned.Replace(folder, name, []byte("new"), func(*os.File) error { return nil }))
		info, err := os.Lstat(filepath.Join(in, name))
		must(t, err)
		if !info.Mode().IsRegular() || info.Mode().Perm() != 0o600 {
			t.Errorf("%s is %v after it was replaced", name, info.Mode())
		}
	}
	for _, path := range []string{victim, inner} {
		if text, err := os.ReadFile(path); err != nil || string(text) != "secret" {
			t.Errorf("%s: %q, %v", path, text, err)
		}
	}
	if _, err := os.Lstat(filepath.Join(dir, "made")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file was made by a link: %v", err)
	}
	for range 2 { // made, then opened
		f, err := owned.OpenFile(folder, "new", os.O_RDWR|os.O_CREATE, 0o600)
		must(t, err)
		f.Close()
	}
	if os.Geteuid() == 0 {
		must(t, os.Chown(inner, stranger, stranger))
		_, err := owned.OpenFile(folder, "inner", os.O_RDWR, 0)
		wantFault(t, err, "inner: it belongs to user 54321")
		f, err := owned.OpenFile(folder, "inner", os.O_RDWR, 0, stranger)
		must(t, err)
		f.Close()
	}
}
