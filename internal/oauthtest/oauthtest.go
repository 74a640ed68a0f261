// Package oauthtest is an authority that gives tokens as Microsoft and Google do, over TLS on
// loopback, with the faults that a test asks for.
package oauthtest

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Authority is a running one. Its fields may be changed with Set.
type Authority struct {
	URL   string
	Roots *x509.CertPool
	PEM   []byte // of its certificate, for programs

	mu       sync.Mutex
	settings Settings
	requests []url.Values
	serial   int
	access   map[string]string // valid tokens and whose they are
	refresh  map[string]bool   // valid ones
	codes    map[string]string // authorization codes and their challenges
	device   bool              // the person has typed the code
}

// Settings are what it knows and how it behaves.
type Settings struct {
	Secrets map[string]string           // of clients
	Keys    map[string]crypto.PublicKey // of clients with certificates and of service accounts
	Life    time.Duration               // of tokens; 0: an hour
	Rotate  bool                        // a refresh token is good for one use
	Now     func() time.Time            // by which assertions are judged and answers dated
	// Fault answers instead, if it returns true.
	Fault func(w http.ResponseWriter, r *http.Request) bool
	// Given is told of a request that has been granted, before it is answered.
	Given func(request map[string][]string)
}

// New starts an authority that ends with the test.
func New(t testing.TB) *Authority {
	t.Helper()
	a := &Authority{
		access: map[string]string{}, refresh: map[string]bool{}, codes: map[string]string{},
		settings: Settings{Secrets: map[string]string{}, Keys: map[string]crypto.PublicKey{}},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/token", a.token)
	mux.HandleFunc("POST /{tenant}/oauth2/v2.0/devicecode", a.devicecode)
	mux.HandleFunc("POST /token", a.token)
	server := httptest.NewUnstartedServer(mux)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of conversations that tests cut off
	server.StartTLS()
	t.Cleanup(server.Close)
	a.PEM = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	a.URL, a.Roots = server.URL, x509.NewCertPool()
	a.Roots.AddCert(server.Certificate())
	return a
}

// Set changes the settings.
func (a *Authority) Set(change func(*Settings)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change(&a.settings)
}

// Requests are those for tokens so far.
func (a *Authority) Requests() []url.Values {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]url.Values(nil), a.requests...)
}

// Valid says whose access token it is, "" if it is not valid.
func (a *Authority) Valid(access string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.access[access]
}

// RevokeAll makes all access tokens invalid.
func (a *Authority) RevokeAll() {
	a.mu.Lock()
	defer a.mu.Unlock()
	clear(a.access)
}

// Refresh gives out a refresh token as a login would.
func (a *Authority) Refresh() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.newRefresh()
}

// Allow is the person who opens the address of a login and allows it. It returns where the
// browser ends.
func (a *Authority) Allow(address string) (string, error) {
	u, err := url.Parse(address)
	if err != nil {
		return "", err
	}
	q := u.Query()
	if q.Get("response_type") != "code" || q.Get("code_challenge_method") != "S256" {
		return "", fmt.Errorf("not an authorization request: %s", address)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.serial++
	code := fmt.Sprintf("code-%d", a.serial)
	a.codes[code] = q.Get("code_challenge")
	return q.Get("redirect_uri") + "/?" + url.Values{"code": {code}, "state": {q.Get("state")}}.Encode(), nil
}

// Type is the person who types the device code.
func (a *Authority) Type() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.device = true
}

func (a *Authority) newRefresh() string {
	a.serial++
	token := fmt.Sprintf("renewal-%d", a.serial)
	a.refresh[token] = true
	return token
}

func (a *Authority) now() time.Time {
	if a.settings.Now != nil {
		return a.settings.Now()
	}
	return time.Now()
}

func (a *Authority) devicecode(w http.ResponseWriter, _ *http.Request) {
	answer(w, http.StatusOK, map[string]any{"device_code": "device-1", "user_code": "ABCD-EFGH",
		"verification_uri": "https://microsoft.example/devicelogin", "expires_in": 60, "interval": 1})
}

func (a *Authority) token(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	a.mu.Lock()
	a.requests = append(a.requests, r.PostForm)
	fault := a.settings.Fault
	w.Header().Set("Date", a.now().UTC().Format(http.TimeFormat))
	a.mu.Unlock()
	if fault != nil && fault(w, r) {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	whose, refusal := a.judge(r)
	if refusal != nil {
		answer(w, http.StatusBadRequest, refusal)
		return
	}
	a.serial++
	life := a.settings.Life
	if life == 0 {
		life = time.Hour
	}
	access := fmt.Sprintf("access-%d", a.serial)
	a.access[access] = whose
	given := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": int(life.Seconds())}
	if used := r.PostForm.Get("refresh_token"); used != "" && a.settings.Rotate {
		delete(a.refresh, used)
		given["refresh_token"] = a.newRefresh()
	} else if used == "" && whose == "person" {
		given["refresh_token"] = a.newRefresh()
	}
	if a.settings.Given != nil {
		a.settings.Given(r.PostForm)
	}
	answer(w, http.StatusOK, given)
}

// judge says who asks, or refuses.
func (a *Authority) judge(r *http.Request) (whose string, refusal map[string]any) {
	form := r.PostForm
	switch form.Get("grant_type") {
	case "client_credentials":
		if assertion := form.Get("client_assertion"); assertion != "" {
			return a.assertion(assertion, form.Get("client_id"), a.URL+r.URL.Path)
		}
		if secret := a.settings.Secrets[form.Get("client_id")]; secret == "" || secret != form.Get("client_secret") {
			return "", refuse("invalid_client", "AADSTS7000215: Invalid client secret provided: "+form.Get("client_secret"))
		}
		return form.Get("client_id"), nil
	case "urn:ietf:params:oauth:grant-type:jwt-bearer":
		return a.assertion(form.Get("assertion"), "", a.URL+r.URL.Path)
	case "refresh_token":
		if !a.refresh[form.Get("refresh_token")] {
			return "", refuse("invalid_grant", "AADSTS70008: the refresh token "+form.Get("refresh_token")+" has expired or was revoked")
		}
		return "person", nil
	case "authorization_code":
		sum := sha256.Sum256([]byte(form.Get("code_verifier")))
		challenge := a.codes[form.Get("code")]
		delete(a.codes, form.Get("code"))
		if challenge == "" || challenge != base64.RawURLEncoding.EncodeToString(sum[:]) {
			return "", refuse("invalid_grant", "AADSTS501481: the code verifier does not match")
		}
		return "person", nil
	case "urn:ietf:params:oauth:grant-type:device_code":
		if !a.device {
			return "", refuse("authorization_pending", "AADSTS70016: pending")
		}
		return "person", nil
	}
	return "", refuse("unsupported_grant_type", form.Get("grant_type"))
}

// assertion checks a signed JWT.
func (a *Authority) assertion(text, client, audience string) (whose string, refusal map[string]any) {
	signed, err := jose.ParseSignedCompact(text, []jose.SignatureAlgorithm{jose.PS256, jose.RS256})
	if err != nil {
		return "", refuse("invalid_client", "AADSTS50027: "+err.Error())
	}
	var claims struct {
		Issuer   string `json:"iss"`
		Subject  string `json:"sub"`
		Audience string `json:"aud"`
		Scope    string `json:"scope"`
		Expires  int64  `json:"exp"`
		Issued   int64  `json:"iat"`
	}
	if err := json.Unmarshal(signed.UnsafePayloadWithoutVerification(), &claims); err != nil {
		return "", refuse("invalid_client", err.Error())
	}
	key := a.settings.Keys[claims.Issuer]
	if key == nil {
		return "", refuse("invalid_client", "AADSTS700016: no such application")
	}
	if _, err := signed.Verify(key); err != nil {
		return "", refuse("invalid_grant", "Invalid JWT Signature.")
	}
	now := a.now().Unix()
	if claims.Expires < now || claims.Issued > now+300 {
		return "", refuse("invalid_grant", "Invalid JWT: Token must be a short-lived token and in a reasonable timeframe.")
	}
	if claims.Audience != audience || client != "" && (claims.Subject != client || client != claims.Issuer ||
		signed.Signatures[0].Header.ExtraHeaders["x5t#S256"] == nil) {
		return "", refuse("invalid_client", "AADSTS700027: the assertion is not for here")
	}
	if client == "" && !strings.Contains(claims.Scope, "mail.google.com") {
		return "", refuse("invalid_scope", claims.Scope)
	}
	return claims.Subject, nil
}

func refuse(code, text string) map[string]any {
	return map[string]any{"error": code, "error_description": text}
}

func answer(w http.ResponseWriter, status int, what map[string]any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(what)
}
