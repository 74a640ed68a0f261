package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/spf13/cobra"

	"postern/admin"
	"postern/cmd/postern/config"
	"postern/cmd/postern/demo"
	"postern/cmd/postern/secret"
	"postern/internal/owned"
	"postern/internal/pgtest"
	"postern/relay/certificate"
	"postern/relay/seal"
)

// Every file with a secret is judged by one rule, and in one text.
func TestH2OneRuleForSecrets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if err := demo.WriteCertificate(dir); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "secret")
	a := &app{source: config.Source{Env: map[string]string{}}, stderr: io.Discard}
	for name, use := range map[string]func(exposed func(error)) error{
		"configuration":                  func(func(error)) error { _, err := config.Read(path); return err },
		"sealing key":                    func(func(error)) error { _, err := a.source.Sealer(config.Config{SecretKeyFile: path}); return err },
		"token":                          func(told func(error)) error { _, err := admin.ReadToken(path, told); return err },
		"client certificate or key file": func(told func(error)) error { _, err := secret.File(path, told); return err },
		"password": func(told func(error)) error {
			cmd, from := &cobra.Command{}, &secret.Source{}
			from.Flags(cmd, "password")
			if err := cmd.ParseFlags([]string{"--password-file", path}); err != nil {
				return err
			}
			_, err := from.Read(nil, told)
			return err
		},
		"EAB or TSIG key": func(func(error)) error { _, err := config.ReadKeyFile(path); return err },
		"certificate's key": func(told func(error)) error {
			_, err := certificate.Pair{Certificate: filepath.Join(dir, "cert.pem"), Key: path}.Load(told)
			return err
		},
		"authorities": func(func(error)) error { _, err := config.ReadRoots(path); return err },
	} {
		for _, mode := range []os.FileMode{0o666, 0o646, 0o602} {
			if err := errors.Join(os.WriteFile(path, make([]byte, seal.KeySize), 0o600), os.Chmod(path, mode)); err != nil {
				t.Fatal(err)
			}
			err := use(func(error) {})
			if !owned.IsFault(err) || !regexp.MustCompile(fmt.Sprintf(`/secret: mode %04o lets everybody (read and )?change it; chmod 600 it, or 640 if`, mode)).MatchString(err.Error()) {
				t.Errorf("%s of mode %04o: %v", name, mode, err)
			}
		}
		if err := os.Chmod(path, 0o644); err != nil {
			t.Fatal(err)
		}
		var told error
		err := use(func(err error) { told = err })
		if errors.As(err, new(*owned.Fault)) {
			told = err
		}
		const want = "/secret: mode 0644 lets everybody read it; chmod 600 it, or 640 if"
		if public := name == "configuration" || name == "authorities"; public == (told != nil && strings.Contains(told.Error(), want)) {
			t.Errorf("%s of mode 0644: %v", name, told)
		}
	}
}

// A server says at its start which of its secrets are open, and does not start with one
// that everybody may change.
func TestH2ServeTellsOfOpenSecrets(t *testing.T) {
	t.Parallel()
	s := installSite(t)
	if err := os.Chmod(filepath.Join(s.dir, "key.pem"), 0o644); err != nil {
		t.Fatal(err)
	}
	d := s.start(t, "serve")
	d.await(t, &d.stderr, `"level":"WARN","msg":"other users can read the key of a certificate","error":"[^"]*key\.pem: mode 0644 lets everybody read it`)
	d.await(t, &d.stderr, `postern is ready`)

	broken := installSite(t)
	if err := os.Chmod(filepath.Join(broken.dir, "key.pem"), 0o666); err != nil {
		t.Fatal(err)
	}
	if _, errs, err := broken.postern(t, "", "serve"); err == nil || !strings.Contains(errs, "key.pem: mode 0666 lets everybody read and change it") {
		t.Errorf("a key that everybody may change: %v\n%s", err, errs)
	}
}

// stranger is a user of the machine that is neither root nor we.
const stranger = 54321

// A configuration that lies where a command is called is not taken from another user.
func TestH2ConfigurationOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	t.Chdir(t.TempDir())
	if err := errors.Join(os.WriteFile("postern.toml", []byte("[database]\nurl = \"nonsense://\"\n"), 0o644), os.Chown("postern.toml", stranger, stranger)); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		environ, args []string
		want          string
	}{
		{nil, nil, "postern.toml: it belongs to user 54321 and not to user root: name it with --config"},
		{[]string{"SUDO_UID=54321"}, nil, "URL is malformed"},
		{nil, []string{"--config", "postern.toml"}, "URL is malformed"},
	} {
		var stderr bytes.Buffer
		status := run(t.Context(), append([]string{"user", "list"}, test.args...), test.environ, nil, io.Discard, &stderr)
		if status != exitFailed || !strings.Contains(stderr.String(), test.want) {
			t.Errorf("%q %q: %d, %q, want %q", test.environ, test.args, status, &stderr, test.want)
		}
	}
}

// Where another user may have prepared the demo's folder, root's demo makes one anew, and
// removes it; one that was chosen is refused.
func TestH2DemoInAPreparedFolder(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	dir := t.TempDir()
	aim := filepath.Join(t.TempDir(), "aim")
	if err := os.WriteFile(aim, []byte("of great worth"), 0o600); err != nil {
		t.Fatal(err)
	}
	prepared := filepath.Join(dir, ".demo")
	err := errors.Join(os.MkdirAll(filepath.Join(prepared, "postgres"), 0o755),
		os.Symlink(aim, filepath.Join(prepared, "postern.toml")), os.Symlink(aim, filepath.Join(prepared, "key.pem")),
		os.Symlink(aim, filepath.Join(prepared, "postgres", "lock")), os.Chown(prepared, stranger, stranger), os.Chown(dir, stranger, stranger))
	if err != nil {
		t.Fatal(err)
	}
	s := &site{dir: dir, config: filepath.Join(dir, "none.toml"), env: []string{"POSTERN_DATABASE_URL=", "POSTERN_SECRET_KEY_FILE="}}
	out := s.must(t, "", "demo", "--once")
	made := regexp.MustCompile(`The demo's files are in (/var/tmp/postern-demo-\d+) until it ends: .*: it belongs to user 54321`).FindStringSubmatch(out)
	if made == nil || !strings.Contains(out, "Nothing is waiting.") {
		t.Fatalf("the demo says:\n%s", out)
	}
	if _, err := os.Lstat(made[1]); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%s is left behind: %v", made[1], err)
	}
	if _, errs, err := s.postern(t, "", "demo", "--once", "--dir", prepared); err == nil || !strings.Contains(errs, "it belongs to user 54321") {
		t.Errorf("a folder that was chosen: %v\n%s", err, errs)
	}
	if text, err := os.ReadFile(aim); err != nil || string(text) != "of great worth" {
		t.Errorf("the file that links led to has %q, %v", text, err)
	}
}

func TestL2PasswordOnTheCommandLine(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{
		"postgres://u:secret@127.0.0.1:1/x": true, "postgres://u@127.0.0.1:1/x?password=secret": true, "host=127.0.0.1 port=1 password=secret": true,
		"postgres://u@127.0.0.1:1/x": false, "host=127.0.0.1 port=1": false,
	} {
		var stderr bytes.Buffer
		run(t.Context(), []string{"user", "list", "--database-url", url}, nil, nil, io.Discard, &stderr)
		if warned := strings.Contains(stderr.String(), "warning: every user of this machine can read the password in --database-url"); warned != want {
			t.Errorf("%s: warned is %v:\n%s", url, warned, &stderr)
		}
		if strings.Contains(stderr.String(), "secret") {
			t.Errorf("the password is printed: %s", &stderr)
		}
		stderr.Reset()
		run(t.Context(), []string{"user", "list"}, []string{"POSTERN_DATABASE_URL=" + url}, nil, io.Discard, &stderr)
		if strings.Contains(stderr.String(), "warning") {
			t.Errorf("warned of the environment: %s", &stderr)
		}
	}
}

// What another user's environment calls itself is bounded, and text.
func TestL2ActorIsBounded(t *testing.T) {
	t.Parallel()
	for _, name := range []string{strings.Repeat("x", 70_000), strings.Repeat("ö", 40_000), "a\xffb"} {
		who := (&app{source: config.Source{Env: map[string]string{"SUDO_USER": name}}}).actor()
		if who == "" || len(who) > maxActor+len("…") || strings.ToValidUTF8(who, "") != who {
			t.Errorf("%d octets: the actor is %.20q of %d", len(name), who, len(who))
		}
	}
	db := pgtest.New(t)
	shell(t, db, exitDone, "user", "add", "alice@example.com")
	long := strings.Repeat("y", maxReason+1)
	shell(t, db, exitUsage, "user", "disable", "alice@example.com", "--reason", long)
	shell(t, db, exitUsage, "queue", "hold", "--user", "alice@example.com", "--reason", long)
	shell(t, db, exitDone, "user", "disable", "alice@example.com", "--reason", long[1:])
}

// A password that is piped to where none is read is not ignored: the account would have
// another one. A pipe that nobody writes to is no password.
func TestPasswdRefusesWhatItDoesNotRead(t *testing.T) {
	t.Parallel()
	file, err := os.Create(filepath.Join(t.TempDir(), "password"))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	for name, in := range map[string]struct{ from, to *os.File }{"file": {file, file}, "pipe": {r, w}} {
		passwd := func(args ...string) (status int, said string) {
			var stderr bytes.Buffer
			args = append([]string{"--database-url", "postgres://" + "127.0.0.1:1" + "/x", "user", "passwd", "alice@example.com"}, args...)
			return run(t.Context(), args, nil, in.from, io.Discard, &stderr), stderr.String()
		}
		const refusal = "standard input is only read with --password-stdin"
		if status, said := passwd(); status != exitFailed || strings.Contains(said, refusal) {
			t.Errorf("%s with nothing in it: status %d, %s", name, status, said)
		}
		if _, err := in.to.WriteString("correct horse battery\n"); err != nil {
			t.Fatal(err)
		}
		if in.from == file {
			if _, err := file.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
		}
		if status, said := passwd(); status != exitUsage || !strings.Contains(said, refusal) {
			t.Errorf("%s: status %d, %s", name, status, said)
		}
		if status, said := passwd("--password-stdin"); status != exitFailed || strings.Contains(said, refusal) {
			t.Errorf("%s with the flag: status %d, %s", name, status, said)
		}
	}
}
