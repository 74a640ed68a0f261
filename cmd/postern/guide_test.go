package main

import (
	"context"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"postern/cmd/postern/database"
	"postern/internal/peers"
	"postern/internal/pgserver"
	"postern/internal/pgtest"
	"postern/internal/smtptest"
)

// A guide is a machine made up for a page of docs that is followed as it stands:
// a PostgreSQL server with the administrator postgres, a smarthost, names and folders
// that the page's are replaced by, and a sudo that is this user all the time.
type guide struct {
	adminShell
	root     string // what the page calls /
	socket   string // folder of PostgreSQL's
	admin    int    // port of health and metrics
	trusted  *smtptest.CA
	ca       string // PEM file of trusted, which everybody here trusts
	next     *smtptest.Server
	replaced []string // pairs, for strings.NewReplacer

	elsewhere map[string]string            // blocks that cannot run here, by first line: why
	instead   map[string]func()            // what is done in a block's place
	after     map[string]func(said string) // what is done behind a block
	mayFail   map[string]string            // blocks whose status is the machine's: why
}

// smarthostPassword is what password.txt has on a guide's machine.
const smarthostPassword = "the smarthost's password"

func newGuide(t *testing.T) *guide {
	t.Helper()
	g := &guide{root: t.TempDir(), elsewhere: map[string]string{}, instead: map[string]func(){}, after: map[string]func(string){}, mayFail: map[string]string{}}
	g.dir = filepath.Join(g.root, "etc/postern") // so that its postern.toml is found
	for _, dir := range []string{g.dir, filepath.Join(g.root, "bin"), filepath.Join(g.root, "var/lib/postern/spool")} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	g.database(t)
	g.trusted = smtptest.NewCA(t)
	g.trusted.Leaf(t, "localhost").WriteFiles(t, g.dir)
	g.ca = filepath.Join(g.root, "ca.pem")
	g.next = smtptest.Start(t, smtptest.Config{
		TLS: g.trusted.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Users: map[string]string{"relay@example.com": smarthostPassword},
	})
	if err := os.WriteFile(g.ca, g.trusted.PEM(), 0o644); err != nil {
		t.Fatal(err)
	}
	g.write(t, "password.txt", smarthostPassword+"\n")
	starttls, implicit := unusedPort(t), unusedPort(t)
	g.admin = unusedPort(t)
	g.replaced = []string{
		"smtp.example.net:587", g.next.Addr(),
		`":587"`, fmt.Sprintf(`"127.0.0.1:%d"`, starttls), `":465"`, fmt.Sprintf(`"127.0.0.1:%d"`, implicit),
		"127.0.0.1:5878", fmt.Sprintf("127.0.0.1:%d", g.admin),
		"587", fmt.Sprint(starttls), "465", fmt.Sprint(implicit),
		"relay.example.com", "localhost",
		"/run/postgresql", g.socket, "/etc/ssl/certs/ca-certificates.crt", g.ca,
		"/etc/postern", g.dir, "/etc/postfix", g.dir, "/var/lib/postern", filepath.Join(g.root, "var/lib/postern"),
	}
	g.programs(t)
	g.env = append(os.Environ(), "PATH="+filepath.Join(g.root, "bin")+":"+os.Getenv("PATH"), "POSTERN_TEST_AS_PROGRAM=1",
		"LC_ALL=C.UTF-8", "POSTERN_DATABASE_URL=", "POSTERN_SECRET_KEY_FILE=",
		"PGHOST="+g.socket, "PGUSER=postern", "PGPORT=5432",
		"SSL_CERT_FILE="+g.ca, "CURL_CA_BUNDLE="+g.ca, "NODE_EXTRA_CA_CERTS="+g.ca)
	return g
}

// database starts a server as a distribution's: its administrator is postgres, and
// there is no role postern yet.
func (g *guide) database(t *testing.T) {
	t.Helper()
	server := pgtest.Server(t, pgserver.Config{})
	address, err := url.Parse(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	g.socket = address.Query().Get("host")
	for _, step := range []struct{ as, do string }{
		{"postern", "create role postgres superuser login"},
		{"postgres", "alter role postern rename to bootstrap"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		conn, err := new(database.Connector).Connect(ctx, fmt.Sprintf("postgres:///postgres?host=%s&user=%s", g.socket, step.as))
		if err == nil {
			_, err = conn.Exec(ctx, step.do)
			_ = conn.Close(ctx)
		}
		cancel()
		if err != nil {
			t.Fatal(err)
		}
	}
}

// programs puts postern and the programs of other people into the machine's PATH, and a
// sudo that changes only who one is for PostgreSQL.
func (g *guide) programs(t *testing.T) {
	t.Helper()
	self, err := filepath.Abs(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(g.root, "bin")
	if err := os.Symlink(self, filepath.Join(bin, "postern")); err != nil {
		t.Fatal(err)
	}
	g.program(t, "sudo", `PGUSER=root
while [ "$1" = -u ]; do PGUSER=$2; shift 2; done
export PGUSER
exec "$@"`)
	known := len(os.Environ())
	for _, name := range []string{"curl", "swaks", "msmtp", "python3", "node"} {
		cmd := peers.Require(t, name).Command(t.Context())
		var script strings.Builder
		for _, kv := range cmd.Env[known:] {
			key, value, _ := strings.Cut(kv, "=")
			fmt.Fprintf(&script, "export %s='%s'\n", key, value)
		}
		if cmd.Dir != "" { // it finds its own files from there, so ours by whole paths
			fmt.Fprintf(&script, "file=$(realpath \"$1\")\nshift\nset -- \"$file\" \"$@\"\ncd '%s'\n", cmd.Dir)
		}
		g.program(t, name, script.String()+"exec '"+cmd.Path+"' \"$@\"")
	}
}

func (g *guide) program(t *testing.T, name, script string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(g.root, "bin", name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

// here is text with what the machine has in the place of the page's names.
func (g *guide) here(text string) string { return strings.NewReplacer(g.replaced...).Replace(text) }

// follow does what a page says: its files are written, its commands run in order, and
// each block that cannot be run is one that the test names.
func (g *guide) follow(t *testing.T, page string) {
	t.Helper()
	met := map[string]bool{}
	ran := 0
	for _, b := range blocksOf(t, page) {
		first := b.firstLine()
		if b.name != "" {
			g.put(t, b)
		}
		if b.language == "console" {
			t.Fatalf("%s:%d: a guide's sessions are sh blocks; accounts.md has the others", page, b.line)
		}
		if b.language != "sh" && b.language != "powershell" {
			continue
		}
		met[first] = true
		if g.elsewhere[first] != "" {
			continue
		}
		if do := g.instead[first]; do != nil {
			do()
			continue
		}
		ran++
		out, err := g.script(t, b)
		if err != nil && g.mayFail[first] == "" {
			t.Fatalf("%s:%d:\n%s\n%v\n%s", page, b.line, b.text, err, out)
		}
		if do := g.after[first]; do != nil {
			do(out)
		}
	}
	for _, table := range [][]string{keysOf(g.elsewhere), keysOf(g.instead), keysOf(g.after), keysOf(g.mayFail)} {
		for _, first := range table {
			if !met[first] {
				t.Errorf("%s has no block that begins with %q", page, first)
			}
		}
	}
	if ran < 5 {
		t.Errorf("only %d blocks of %s were run", ran, page)
	}
}

func keysOf[V any](m map[string]V) []string {
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	return keys
}

// put writes a block that is a file.
func (g *guide) put(t *testing.T, b block) {
	t.Helper()
	name := g.here(b.name)
	if !filepath.IsAbs(name) {
		name = filepath.Join(g.dir, name)
	}
	text := g.here(b.text)
	if strings.HasSuffix(name, "postern.toml") { // many machines are made up concurrently
		text += fmt.Sprintf("[admin]\naddress = \"127.0.0.1:%d\"\n", g.admin)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (g *guide) script(t *testing.T, b block) (output string, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-e", "-c", g.here(b.text))
	cmd.Dir, cmd.Env = g.dir, g.env
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// installed writes the configuration of docs/install.md and makes the database, as
// somebody has who comes to another page.
func (g *guide) installed(t *testing.T) {
	t.Helper()
	i := slices.IndexFunc(blocksOf(t, "../../docs/install.md"), func(b block) bool { return b.name == "/etc/postern/postern.toml" })
	if i < 0 {
		t.Fatal("docs/install.md has no configuration")
	}
	g.put(t, blocksOf(t, "../../docs/install.md")[i])
	g.must(t, g.here(`sudo -u postgres createuser postern
sudo -u postgres createdb --owner=postern --encoding=UTF8 --template=template0 postern
postern migrate
postern upstream add out --host smtp.example.net:587 --tls require --username relay@example.com --password-stdin <password.txt
postern route add --via out`))
}
