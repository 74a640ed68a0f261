package main

import (
	"bufio"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"postern/internal/oauthtest"
	"postern/internal/smtptest"
	"postern/relay/seal"
)

const clientSecret = "the client's value"

// tokenSite is a site whose upstream takes the tokens of an authority.
func tokenSite(t *testing.T) (*site, *oauthtest.Authority, *smtptest.Server) {
	t.Helper()
	a := oauthtest.New(t)
	a.Set(func(s *oauthtest.Settings) { s.Secrets["app-1"] = clientSecret })
	ca := smtptest.NewCA(t)
	server := smtptest.Start(t, smtptest.Config{TLS: ca.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Tokens: func(user, token string) bool {
		return user == "relay@example.com" && a.Valid(token) != ""
	}})
	s := installSite(t)
	s.edit(t, func(text string) string {
		return text + "[oauth]\nserver = \"" + a.URL + "\"\nserver_ca = \"authority.pem\"\n"
	})
	for name, text := range map[string][]byte{"authority.pem": a.PEM, "upstream.pem": ca.PEM()} {
		if err := os.WriteFile(filepath.Join(s.dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return s, a, server
}

func (s *site) addTokenUpstream(t *testing.T, server *smtptest.Server, stdin string, more ...string) {
	t.Helper()
	s.must(t, stdin, append([]string{"upstream", "add", "m365", "--host", server.Addr(), "--tls", "require", "--ca-file", filepath.Join(s.dir, "upstream.pem"),
		"--username", "relay@example.com", "--tenant", "example.com", "--client-id", "app-1"}, more...)...)
	s.must(t, "", "route", "add", "--via", "m365")
}

// Mail goes out by a token that the nodes and the check share; the end of its secret is told;
// and with another secret that is wrong, the check says what to do.
func TestUpstreamByToken(t *testing.T) {
	t.Parallel()
	s, a, server := tokenSite(t)
	soon := time.Now().UTC().AddDate(0, 0, 5).Format(time.DateOnly)
	s.addTokenUpstream(t, server, clientSecret, "--oauth", "client-credentials", "--client-secret-stdin", "--secret-expires", soon)
	d := s.serve(t)
	s.asGoDoes(t, plainMail, "bob@example.net")
	if m := server.WaitMessages(t, 1); m[0].User != "relay@example.com" {
		t.Errorf("sent as %q", m[0].User)
	}
	out, _, err := s.postern(t, "", "check", "--only", "upstream")
	if err != nil || !strings.Contains(out, "it accepts the account relay@example.com") || !strings.Contains(out, soon) {
		t.Errorf("%v\n%s", err, out)
	}
	if n := len(a.Requests()); n != 1 {
		t.Errorf("%d tokens were asked for", n)
	}
	d.await(t, &d.stderr, `the secret of an upstream's account expires`)

	s.must(t, "another value", "upstream", "set", "m365", "--oauth", "client-credentials", "--tenant", "example.com", "--client-id", "app-1", "--client-secret-stdin")
	out, _, err = s.postern(t, "", "check", "--only", "upstream")
	if err == nil || !strings.Contains(out, "AADSTS7000215") || !strings.Contains(out, "not its id") || strings.Contains(out, "another value") {
		t.Errorf("%v\n%s", err, out)
	}
	if text := d.stderr.String(); strings.Contains(text, clientSecret) || strings.Contains(text, "access-") {
		t.Error("the log has a secret")
	}
}

// A person logs in by a browser, and the nodes go on with the refresh token.
func TestUpstreamLogin(t *testing.T) {
	t.Parallel()
	s, a, server := tokenSite(t)
	s.addTokenUpstream(t, server, "", "--oauth", "refresh-token")
	out, _, err := s.postern(t, "", "check", "--only", "upstream")
	if err == nil || !strings.Contains(out, "nobody has logged in yet") {
		t.Errorf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if said := logInBy(t, a, s.command(ctx, "upstream", "login", "m365")); said != "logged in for upstream m365 as relay@example.com" {
		t.Fatalf("%q", said)
	}
	s.serve(t)
	s.asGoDoes(t, plainMail, "bob@example.net")
	server.WaitMessages(t, 1)
	if out := s.must(t, "", "audit", "--limit", "1"); !strings.Contains(out, "upstream login") {
		t.Error(out)
	}
}

// logInBy is the person who runs upstream login: the browser is the authority's. It returns the
// last line that is printed.
func logInBy(t *testing.T, a *oauthtest.Authority, cmd *exec.Cmd) (said string) {
	t.Helper()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(stdout)
	var address string
	for address == "" && lines.Scan() {
		if strings.HasPrefix(lines.Text(), "https://") {
			address = lines.Text()
		}
	}
	end, err := a.Allow(address)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(stdin, end+"\n"); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
		said = lines.Text()
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %q", err, said)
	}
	return said
}

// docs/oauth.md: an authority and a mail server of the test stand in for Microsoft and Google.
func TestOAuthPage(t *testing.T) {
	t.Parallel()
	g := newGuide(t)
	a := oauthtest.New(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	a.Set(func(s *oauthtest.Settings) {
		s.Secrets["6731de76-14a6-49ae-97bc-6eba6914391e"] = clientSecret
		s.Keys = map[string]crypto.PublicKey{"relay@project.example": key.Public()}
	})
	server := smtptest.Start(t, smtptest.Config{TLS: g.trusted.ServerConfig(t, "127.0.0.1"), AuthOnly: true, Tokens: func(user, token string) bool {
		return user == "relay@example.com" && a.Valid(token) != ""
	}})
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	account, err := json.Marshal(map[string]string{"type": "service_account", "client_email": "relay@project.example", "private_key_id": "1",
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))})
	if err != nil {
		t.Fatal(err)
	}
	g.write(t, "key.json", string(account))
	g.write(t, "secret.txt", clientSecret+"\n")
	g.write(t, "authority.pem", string(a.PEM))
	day := func(days int) string { return time.Now().UTC().AddDate(0, 0, days).Format(time.DateOnly) }
	g.replaced = append([]string{
		"--preset m365", "--preset m365 --host " + server.Addr(), "smtp.gmail.com:587", server.Addr(),
		"2027-01-31", day(10), "2028-01-31", day(400),
	}, g.replaced...)
	g.installed(t)
	config, err := os.ReadFile(filepath.Join(g.dir, "postern.toml"))
	if err != nil {
		t.Fatal(err)
	}
	g.write(t, "postern.toml", string(config)+"[oauth]\nserver = \""+a.URL+"\"\nserver_ca = \""+filepath.Join(g.dir, "authority.pem")+"\"\n")

	g.elsewhere["New-ServicePrincipal -AppId <client id> -ObjectId <object id>"] = "it is typed into Microsoft's Exchange Online PowerShell"
	g.instead["postern upstream login mailbox"] = func() {
		if said := logInBy(t, a, g.command(t, "postern upstream login mailbox")); !strings.HasPrefix(said, "logged in") {
			t.Errorf("%q", said)
		}
		a.Type() // the code of the block that follows
	}
	g.after["postern upstream login mailbox --device"] = func(said string) {
		if !strings.Contains(said, "type the code ABCD-EFGH") || !strings.Contains(said, "logged in for upstream mailbox") {
			t.Errorf("no login by a code:\n%s", said)
		}
	}
	g.follow(t, "../../docs/oauth.md")
	said := g.must(t, "postern check --only upstream")
	if strings.Count(said, "it accepts the account relay@example.com") != 4 { // with the guide's own
		t.Errorf("not every upstream of the page takes its token:\n%s", said)
	}
	if said := g.must(t, "postern upstream show m365"); !strings.Contains(said, day(400)) {
		t.Errorf("the new secret is not there:\n%s", said)
	}
}

// A node or a command with a file from before a rotation asks for no token that it could not
// store; a node follows when the right file comes.
func TestTokensWithAnOldKeyFile(t *testing.T) {
	t.Parallel()
	s, a, server := tokenSite(t)
	s.addTokenUpstream(t, server, clientSecret, "--oauth", "client-credentials", "--client-secret-stdin")
	path := filepath.Join(s.dir, "secret.key")
	file := func() []byte {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	old := file()
	s.must(t, "", "key", "rotate")
	ring := file()
	sealer, err := seal.New(ring[:seal.KeySize], ring[seal.KeySize:])
	if err != nil {
		t.Fatal(err)
	}
	s.must(t, "", "key", "use", sealer.Keys()[1])
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	const says = "copy the file of a node that has it"
	if _, stderr, err := s.postern(t, "", "upstream", "test", "m365"); err == nil || !strings.Contains(stderr, says) {
		t.Errorf("upstream test: %v\n%s", err, stderr)
	}
	d := s.serve(t)
	d.await(t, &d.stderr, says)
	if n := len(a.Requests()); n != 0 {
		t.Errorf("%d tokens were asked for", n)
	}
	var list string
	for !strings.Contains(list, "relay.test") {
		list = s.must(t, "", "key", "list", "--json")
	}
	if err := os.WriteFile(path, ring, 0o600); err != nil {
		t.Fatal(err)
	}
	d.await(t, &d.stderr, "secrets are sealed with the current key now")
	s.asGoDoes(t, plainMail, "bob@example.net")
	server.WaitMessages(t, 1)
	s.must(t, "", "upstream", "test", "m365")
}
