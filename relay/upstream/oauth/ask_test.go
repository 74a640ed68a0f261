package oauth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/oauth2"

	"postern/internal/oauthtest"
)

const secretText = "s3cr~t/+value"

// key is one for all tests: making one takes long.
var key = sync.OnceValue(func() *rsa.PrivateKey {
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return k
})

func pemOf(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

func keyPEM(t testing.TB) string {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key())
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("PRIVATE KEY", der)
}

// certificate is a client certificate with its key.
func certificate(t testing.TB, expires time.Time) string {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "postern"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: expires}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key().Public(), key())
	if err != nil {
		t.Fatal(err)
	}
	return pemOf("CERTIFICATE", der) + keyPEM(t)
}

func keyFileText(t testing.TB, change map[string]string) string {
	t.Helper()
	f := map[string]string{"type": "service_account", "client_email": "relay@project.example", "private_key_id": "1",
		"private_key": keyPEM(t), "token_uri": "https://evil.example/token", "universe_domain": "googleapis.com"}
	for k, v := range change {
		f[k] = v
	}
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// at are the authorities of a test.
func at(a *oauthtest.Authority) Authorities { return At(a.URL) }

func complete(t testing.TB, g Grant) Grant {
	t.Helper()
	if err := g.Complete("relay@example.com"); err != nil {
		t.Fatal(err)
	}
	return g
}

func byCredentials(t testing.TB) Grant {
	return complete(t, Grant{Kind: ClientCredentials, Tenant: "contoso.example", ClientID: "app-1", Secret: secretText})
}

func byPerson(t testing.TB) Grant {
	return complete(t, Grant{Kind: RefreshToken, Tenant: "contoso.example", ClientID: "app-1"})
}

func authority(t testing.TB) *oauthtest.Authority {
	a := oauthtest.New(t)
	a.Set(func(s *oauthtest.Settings) {
		s.Secrets["app-1"] = secretText
		s.Keys = map[string]crypto.PublicKey{"app-1": key().Public(), "relay@project.example": key().Public()}
	})
	return a
}

func TestGrants(t *testing.T) {
	t.Parallel()
	a := authority(t)
	tests := map[string]struct {
		grant          Grant
		whose, scope   string
		refresh, gives string
	}{
		"secret":          {byCredentials(t), "app-1", "https://outlook.office365.com/.default", "", ""},
		"certificate":     {complete(t, Grant{Kind: ClientCredentials, Tenant: "contoso.example", ClientID: "app-1", Certificate: certificate(t, time.Now().Add(time.Hour))}), "app-1", "https://outlook.office365.com/.default", "", ""},
		"service account": {complete(t, Grant{Kind: ServiceAccount, Key: keyFileText(t, nil)}), "relay@example.com", "", "", ""},
		"refresh token":   {byPerson(t), "person", "", a.Refresh(), "renewal-"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			p, err := newAsker(at(a), a.Roots).ask(t.Context(), &test.grant, test.refresh)
			if err != nil {
				t.Fatal(err)
			}
			if whose := a.Valid(p.Access); whose != test.whose {
				t.Errorf("the token is %q's", whose)
			}
			if p.Life < 59*time.Minute || p.Life > time.Hour || !strings.HasPrefix(p.Refresh, test.gives) {
				t.Errorf("life %v, refresh token %q", p.Life, p.Refresh)
			}
			requests := a.Requests()
			if scope := requests[len(requests)-1].Get("scope"); scope != test.scope {
				t.Errorf("scope %q", scope)
			}
		})
	}
}

// The answers of authorities in place of a token, and the words about each.
func TestFaults(t *testing.T) {
	t.Parallel()
	plain := func(status int, body string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.Header().Set("Retry-After", "90")
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	refused := func(code, text string) func(http.ResponseWriter, *http.Request) bool {
		body, err := json.Marshal(map[string]string{"error": code, "error_description": text})
		if err != nil {
			t.Fatal(err)
		}
		return plain(400, string(body))
	}
	giant := `{"access_token":"` + strings.Repeat("a", 70<<10) + `"}`
	tests := map[string]struct {
		fault func(http.ResponseWriter, *http.Request) bool
		says  []string
		login bool
		after time.Duration
	}{
		"secret's id":    {refused("invalid_client", "AADSTS7000215: Invalid client secret provided. "+secretText), []string{"AADSTS7000215: ", "not its id", "provided. …"}, false, 90},
		"secret expired": {refused("invalid_client", "AADSTS7000222: The provided client secret keys are expired."), []string{"make a new one in Entra"}, false, 90},
		"no such tenant": {refused("invalid_request", "AADSTS90002: Tenant 'x' not found."), []string{"check --tenant"}, false, 90},
		"no delegation":  {refused("unauthorized_client", "Client is unauthorized"), []string{"domain-wide delegation"}, false, 90},
		"unknown code":   {refused("strange", "no\r\n\u009bidea\x00\u202e"), []string{"strange: the authority microsoft gives no token: no idea"}, false, 90},
		"revoked":        {refused("invalid_grant", "AADSTS70008: revoked"), []string{"log in again with 'postern upstream login'"}, true, 90},
		"consent":        {refused("interaction_required", "AADSTS65001: consent"), []string{"has to consent"}, true, 90},
		"500":            {plain(500, "<html>"), []string{"answered 500"}, false, 90},
		"500 with code":  {plain(503, `{"error":"temporarily_unavailable"}`), []string{"temporarily_unavailable: "}, false, 90},
		"throttled":      {plain(429, `{"error":"invalid_request"}`), []string{"invalid_request: "}, false, 90},
		"400 with HTML":  {plain(400, "<html>"), []string{"answered 400"}, false, 90},
		"200 with error": {plain(200, `{"error":"invalid_scope"}`), []string{"invalid_scope"}, false, 90},
		"giant":          {plain(200, giant), []string{"larger than 65536 octets"}, false, 0},
		"giant refusal":  {plain(400, giant), []string{"larger than 65536 octets"}, false, 0},
		"not JSON":       {plain(200, "ok"), []string{"cannot parse json"}, false, 0},
		"no token":       {plain(200, "{}"), []string{"missing access_token"}, false, 0},
		"control":        {plain(200, `{"access_token":"a\u0001auth=b"}`), []string{"control characters"}, false, 0},
		"too long":       {plain(200, `{"access_token":"`+strings.Repeat("a", 8193)+`"}`), []string{"longer than 8192 octets"}, false, 0},
		"refresh token":  {plain(200, `{"access_token":"a","refresh_token":"b\n"}`), []string{"control characters"}, false, 0},
		"not Bearer":     {plain(200, `{"access_token":"a","token_type":"mac"}`), []string{"another type than Bearer"}, false, 0},
		"redirect": {func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://127.0.0.1:1/token", http.StatusTemporaryRedirect)
			return true
		}, []string{"answered 307, and redirects are not followed"}, false, 0},
		"cut off": {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }, []string{"no token from the authority microsoft: EOF"}, false, 0},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a := authority(t)
			a.Set(func(s *oauthtest.Settings) { s.Fault = test.fault })
			g := byPerson(t)
			g.Secret = secretText
			_, err := newAsker(at(a), a.Roots).ask(t.Context(), &g, "the-refresh-token")
			var f *Fault
			if !errors.As(err, &f) {
				t.Fatalf("%v", err)
			}
			for _, part := range test.says {
				if !strings.Contains(f.Error(), part) {
					t.Errorf("%q does not say %q", f, part)
				}
			}
			if f.Login != test.login || f.after != test.after*time.Second {
				t.Errorf("login %v, after %v", f.Login, f.after)
			}
			if again := remembered(f.Error(), f.Login); again.Error() != f.Error() || again.Login != f.Login || !f.Login && again.Do != f.Do {
				t.Errorf("another node says %+v", again)
			}
			if strings.ContainsAny(f.Error(), "\r\n\x00") || strings.Contains(f.Error(), secretText) || len(f.Error()) > 1000 {
				t.Errorf("%q", f)
			}
			if len(a.Requests()) != 1 {
				t.Errorf("%d requests", len(a.Requests()))
			}
		})
	}
}

func TestNobodyHasLoggedIn(t *testing.T) {
	t.Parallel()
	a, g := authority(t), byPerson(t)
	_, err := newAsker(at(a), a.Roots).ask(t.Context(), &g, "")
	var f *Fault
	if !errors.As(err, &f) || !f.Login || len(a.Requests()) != 0 {
		t.Errorf("%v after %d requests", err, len(a.Requests()))
	}
}

// The clock of an assertion is ours; the authority's header says which of the two is wrong.
func TestClockSkew(t *testing.T) {
	t.Parallel()
	a := authority(t)
	a.Set(func(s *oauthtest.Settings) { s.Now = func() time.Time { return time.Now().Add(-90 * time.Minute) } })
	g := complete(t, Grant{Kind: ServiceAccount, Key: keyFileText(t, nil)})
	_, err := newAsker(at(a), a.Roots).ask(t.Context(), &g, "")
	if err == nil || !strings.Contains(err.Error(), "set this machine's clock; this machine's clock is 1h30m0s ahead of the authority's") {
		t.Error(err)
	}
}

func TestNoSecretsInClear(t *testing.T) {
	t.Parallel()
	a, g := authority(t), byCredentials(t)
	known := at(a)
	m := known["microsoft"]
	m.Token = strings.Replace(m.Token, "https:", "http:", 1)
	known["microsoft"] = m
	if _, err := newAsker(known, a.Roots).ask(t.Context(), &g, ""); err == nil || !strings.Contains(err.Error(), "secrets are sent only over TLS") {
		t.Error(err)
	}
	if _, err := newAsker(at(a), x509.NewCertPool()).ask(t.Context(), &g, ""); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("an authority that nobody vouches for: %v", err)
	}
	if len(a.Requests()) != 0 {
		t.Errorf("requests: %v", a.Requests())
	}
}

// An authority that does not answer costs its time and no more.
func TestSlowAuthority(t *testing.T) {
	t.Parallel()
	a, g := authority(t), byCredentials(t)
	arrived := make(chan struct{})
	a.Set(func(s *oauthtest.Settings) {
		s.Fault = func(_ http.ResponseWriter, r *http.Request) bool {
			close(arrived)
			<-r.Context().Done()
			return true
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		cancel()
	}()
	if _, err := newAsker(at(a), a.Roots).ask(ctx, &g, ""); err == nil {
		t.Error("a token came from nowhere")
	}
	asker := newAsker(at(a), a.Roots)
	if client := asker.with(ctx).Value(oauth2.HTTPClient).(*http.Client); client.Timeout != askTime || asker.transport.TLSHandshakeTimeout == 0 || asker.transport.Proxy != nil {
		t.Error("no bound, or a proxy")
	}
}

// An answer that turns the connection into another protocol's is an answer.
func TestOtherProtocol(t *testing.T) {
	t.Parallel()
	a, g := authority(t), byCredentials(t)
	a.Set(func(s *oauthtest.Settings) {
		s.Fault = func(w http.ResponseWriter, _ *http.Request) bool {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				t.Error(err)
				return true
			}
			t.Cleanup(func() { conn.Close() })
			_, _ = io.WriteString(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
			return true
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := newAsker(at(a), a.Roots).ask(t.Context(), &g, "")
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil {
			t.Error("a token came from nowhere")
		}
	case <-time.After(2 * askTime):
		t.Error("it waits")
	}
}

func TestComplete(t *testing.T) {
	t.Parallel()
	good := Grant{Kind: ClientCredentials, Tenant: "contoso.example", ClientID: "app-1", Secret: "x"}
	tests := map[string]struct {
		change func(*Grant)
		want   string
	}{
		"kind":                   {func(g *Grant) { g.Kind = "password" }, "is none of client-credentials"},
		"authority":              {func(g *Grant) { g.Authority = "evil.example" }, "is none of google, microsoft,"},
		"Google's":               {func(g *Grant) { g.Authority, g.Tenant = "google", "" }, "gives no token by the grant"},
		"Microsoft's":            {func(g *Grant) { g.Kind, g.Authority = ServiceAccount, "microsoft" }, "gives no token by the grant"},
		"no tenant":              {func(g *Grant) { g.Tenant = "" }, "--tenant is missing"},
		"a path as tenant":       {func(g *Grant) { g.Tenant = "a/b" }, `tenant "a/b"`},
		"a common tenant":        {func(g *Grant) { g.Tenant = "common" }, "its own tenant"},
		"no client":              {func(g *Grant) { g.ClientID = "" }, "client id"},
		"no secret":              {func(g *Grant) { g.Secret = "" }, "either a client secret or"},
		"two secrets":            {func(g *Grant) { g.Certificate = "x" }, "either a client secret or"},
		"not a certificate":      {func(g *Grant) { g.Secret, g.Certificate = "", "x" }, "PEM"},
		"control":                {func(g *Grant) { g.Secret = "a\nb" }, "printable"},
		"a subject":              {func(g *Grant) { g.Subject = "a@b" }, "belong to the grant service-account"},
		"a person's certificate": {func(g *Grant) { g.Kind, g.Certificate = RefreshToken, "x" }, "belongs to the grant client-credentials"},
		"no key":                 {func(g *Grant) { *g = Grant{Kind: ServiceAccount} }, "not the JSON file"},
		"another key":            {func(g *Grant) { *g = Grant{Kind: ServiceAccount, Key: `{"type":"authorized_user"}`} }, "not the JSON file"},
		"no private key": {func(g *Grant) {
			*g = Grant{Kind: ServiceAccount, Key: keyFileText(t, map[string]string{"private_key": "x"})}
		}, "no private_key"},
		"another cloud": {func(g *Grant) {
			*g = Grant{Kind: ServiceAccount, Key: keyFileText(t, map[string]string{"universe_domain": "x.example"})}
		}, "x.example"},
		"a key and a secret": {func(g *Grant) { *g = Grant{Kind: ServiceAccount, Secret: "x", Key: keyFileText(t, nil)} }, "its key file only"},
		"good":               {func(*Grant) {}, ""},
		"a key":              {func(g *Grant) { *g = Grant{Kind: ServiceAccount, Key: keyFileText(t, nil)} }, ""},
		"a person at Google": {func(g *Grant) { *g = Grant{Kind: RefreshToken, ClientID: "x.apps.googleusercontent.com"} }, ""},
	}
	for name, test := range tests {
		g := good
		test.change(&g)
		err := g.Complete("relay@example.com")
		if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: %v, want %q", name, err, test.want)
		}
		if err == nil && g.Salt == "" {
			t.Errorf("%s: no salt", name)
		}
	}
	if err := good.Complete(""); err == nil {
		t.Error("an account without a name")
	}
}

func TestCertificateExpires(t *testing.T) {
	t.Parallel()
	at := time.Now().Add(40 * 24 * time.Hour).Truncate(time.Second)
	g := Grant{Certificate: certificate(t, at)}
	if got := g.CertificateExpires(); !got.Equal(at) {
		t.Errorf("%v, want %v", got, at)
	}
	if g = (Grant{}); !g.CertificateExpires().IsZero() {
		t.Error("no certificate, and it expires")
	}
}

// Two accounts of equal settings, and one whose settings changed, share no token.
func TestCredential(t *testing.T) {
	t.Parallel()
	one := Account{Upstream: "a", Username: "u", Grant: byCredentials(t)}
	for what, change := range map[string]func(*Account){
		"upstream": func(a *Account) { a.Upstream = "b" }, "user": func(a *Account) { a.Username = "v" },
		"secret": func(a *Account) { a.Grant.Secret = "x" }, "salt": func(a *Account) { a.Grant.Salt = "x" },
	} {
		other := one
		change(&other)
		if other.credential() == one.credential() {
			t.Errorf("another %s makes no difference", what)
		}
	}
	if again := one; again.credential() != one.credential() || bytes.Contains([]byte(one.credential()), []byte(secretText)) {
		t.Error("it must be the same, and reveal nothing")
	}
}
