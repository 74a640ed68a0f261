package pgserver_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"postern/internal/owned"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
)

// stranger is a user of the machine that is neither root nor the server's.
const stranger = 54321

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// victim is a file that another user wants this process to change.
func victim(t *testing.T) (path string, unchanged func()) {
	t.Helper()
	const text = "of great worth\n"
	path = filepath.Join(t.TempDir(), "victim")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path, func() {
		t.Helper()
		if got, err := os.ReadFile(path); err != nil || string(got) != text {
			t.Errorf("the file that links led to has %q, %v", got, err)
		}
	}
}

// refused wants no server on the folder, and no word with one that runs there.
func refused(t *testing.T, dir, want string) {
	t.Helper()
	server, err := pgserver.Start(t.Context(), pgserver.Config{Dir: dir, Unsafe: true})
	if err == nil {
		_ = server.Stop()
		t.Fatal("it started")
	}
	var fault *owned.Fault
	if !errors.As(err, &fault) || !strings.Contains(err.Error(), want) {
		t.Errorf("error %q, want a fault with %q", err, want)
	}
	if url, ok := pgserver.Running(dir); ok {
		t.Errorf("%s is running", url)
	}
}

// A folder that another user has prepared, with links where this package's files are.
func TestH2PreparedFolder(t *testing.T) {
	t.Parallel()
	aim, unchanged := victim(t)
	prepare := func(t *testing.T, dir string) {
		t.Helper()
		must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o755))
		for _, name := range []string{"lock", "postgres.log", "data/postern.conf", "data/PG_VERSION"} {
			must(t, os.Symlink(aim, filepath.Join(dir, name)))
		}
	}
	t.Run("by its owner", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can give files away")
		}
		dir := pgtest.Dir(t)
		prepare(t, dir)
		must(t, os.Chown(dir, stranger, stranger))
		refused(t, dir, "it belongs to user 54321 and not to user root")
	})
	t.Run("below its owner's", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("only root can give files away")
		}
		dir := pgtest.Dir(t)
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.Chown(dir, stranger, stranger))
		refused(t, filepath.Join(dir, "new"), dir+": it belongs to user 54321")
	})
	t.Run("by everybody", func(t *testing.T) {
		dir := pgtest.Dir(t)
		prepare(t, dir)
		must(t, os.Chmod(dir, 0o777|os.ModeSticky))
		refused(t, dir, "mode 0777 lets others")
	})
	t.Run("below one of everybody", func(t *testing.T) {
		dir := pgtest.Dir(t)
		must(t, os.Mkdir(dir, 0o755))
		must(t, os.Chmod(dir, 0o777))
		refused(t, filepath.Join(dir, "new"), "mode 0777 lets others")
	})
	t.Run("of ours, with links", func(t *testing.T) {
		dir := pgtest.Dir(t)
		prepare(t, dir)
		refused(t, dir, "lock: not a regular file")
	})
	unchanged()
}

// The server's own user has files that this process reads and writes: where they are
// links, they are not followed.
func TestH2LinksOfTheServersUser(t *testing.T) {
	t.Parallel()
	aim, unchanged := victim(t)
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	must(t, start(t, config).Stop())
	replace := func(name string) {
		t.Helper()
		path := filepath.Join(config.Dir, name)
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		must(t, os.Symlink(aim, path))
	}
	replace("data/postern.conf")
	replace("data/postern.conf.new")
	must(t, start(t, config).Stop())
	unchanged()

	replace("data/postmaster.pid") // which the server itself fails to write
	if server, err := pgserver.Start(t.Context(), config); err == nil {
		must(t, server.Stop())
	}
	must(t, os.Remove(filepath.Join(config.Dir, "data/postmaster.pid")))
	unchanged()

	for _, name := range []string{"postgres.log", "lock"} {
		replace(name)
		refused(t, config.Dir, name+": not a regular file")
		must(t, os.Remove(filepath.Join(config.Dir, name)))
		if name == "postgres.log" {
			must(t, start(t, config).Stop())
		}
	}
	unchanged()
}

// The server's user cannot put links into the folder itself, which root opens files in;
// of a folder that an earlier release gave to that user, this is true from now on.
func TestH2TheFolderIsNotTheServersUsers(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true}
	must(t, start(t, config).Stop())
	account := owner(t, filepath.Join(config.Dir, "data"))
	if os.Geteuid() == 0 {
		must(t, os.Chown(config.Dir, account, account))
		must(t, os.Chmod(config.Dir, 0o700))
		must(t, os.Chown(filepath.Join(config.Dir, "postgres.log"), account, account))
	}
	connect(t, start(t, config))
	info, err := os.Stat(config.Dir)
	must(t, err)
	want := os.FileMode(0o700)
	if os.Geteuid() == 0 {
		want = 0o711
	}
	if who := owner(t, config.Dir); who != os.Geteuid() || info.Mode().Perm() != want {
		t.Errorf("the folder is of user %d with mode %v, want %d and %v", who, info.Mode().Perm(), os.Geteuid(), want)
	}
	if _, ok := pgserver.Running(config.Dir); !ok {
		t.Error("the server is not found")
	}
}

func owner(t *testing.T, path string) int {
	t.Helper()
	info, err := os.Lstat(path)
	must(t, err)
	return int(info.Sys().(*syscall.Stat_t).Uid)
}

// A private server writes no parameters of statements into its log, whatever is logged.
func TestL2PrivateServerLogsNoParameters(t *testing.T) {
	t.Parallel()
	config := pgserver.Config{Dir: pgtest.Dir(t), Unsafe: true, Settings: map[string]string{"log_statement": "all"}}
	conn := connect(t, start(t, config))
	var got string
	must(t, conn.QueryRow(t.Context(), `select $1::text`, "a-secret").Scan(&got))
	log, err := os.ReadFile(filepath.Join(config.Dir, "postgres.log"))
	must(t, err)
	if !strings.Contains(string(log), "select $1::text") || strings.Contains(string(log), "a-secret") {
		t.Errorf("its log has:\n%s", log)
	}
}
