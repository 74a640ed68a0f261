package oauth

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Kind says how an account gets its tokens.
type Kind string

const (
	ClientCredentials Kind = "client-credentials" // Microsoft: an application's secret or certificate
	ServiceAccount    Kind = "service-account"    // Google: a key with domain-wide delegation
	RefreshToken      Kind = "refresh-token"      // a person has logged in once
)

// kinds are all that there are.
var kinds = []Kind{ClientCredentials, ServiceAccount, RefreshToken}

// Grant says how an account gets its tokens; the zero Grant is none. It holds secrets: it is
// stored sealed, as JSON. Grants can be compared.
type Grant struct {
	Kind        Kind   `json:"kind,omitempty"`
	Authority   string `json:"authority,omitempty"` // of Authorities
	Tenant      string `json:"tenant,omitempty"`    // Microsoft: its id or a domain
	ClientID    string `json:"client_id,omitempty"`
	Secret      string `json:"secret,omitempty"`      // the client's
	Certificate string `json:"certificate,omitempty"` // instead of a secret: PEM, with its RSA key
	Key         string `json:"key,omitempty"`         // the JSON file of a service account
	Subject     string `json:"subject,omitempty"`     // the mailbox that a service account stands for

	// Salt makes what [Account] derives from a grant tell nothing about its secrets.
	Salt string `json:"salt,omitempty"`
}

// Account is an upstream's account that is proved by tokens.
type Account struct {
	Upstream string // its name
	Username string // the mailbox
	Grant    Grant
}

var (
	tenantForm = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?$`)
	clientForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$`)
)

// shared are the words that Microsoft takes instead of a tenant where a person logs in.
var shared = []string{"common", "organizations", "consumers"}

// Complete fills in what was left out, for the account of that user name. The error is a sentence
// about what is wrong.
func (g *Grant) Complete(username string) error {
	if !slices.Contains(kinds, g.Kind) {
		return fmt.Errorf("grant %q is none of client-credentials, service-account and refresh-token", g.Kind)
	}
	if username == "" {
		return errors.New("a token needs a user name: the mailbox that mail is sent as")
	}
	if g.Authority == "" {
		g.Authority = "microsoft"
		if g.Kind == ServiceAccount || g.Kind == RefreshToken && g.Tenant == "" {
			g.Authority = "google"
		}
	}
	authority, ok := Known()[g.Authority]
	if !ok {
		return fmt.Errorf("authority %q is none of %s", g.Authority, strings.Join(Known().Names(), ", "))
	}
	if g.Subject == "" && g.Kind == ServiceAccount {
		g.Subject = username
	}
	if err := g.validate(authority); err != nil {
		return err
	}
	if g.Salt == "" {
		g.Salt = rand.Text()
	}
	return nil
}

func (g *Grant) validate(authority Authority) error {
	if authority.Google == (g.Kind == ClientCredentials) && g.Kind != RefreshToken {
		return fmt.Errorf("authority %s gives no token by the grant %s", g.Authority, g.Kind)
	}
	switch {
	case authority.Google && g.Tenant != "":
		return errors.New("a tenant belongs to Microsoft, not to Google")
	case !authority.Google && g.Tenant == "":
		return errors.New("--tenant is missing: the tenant's id, or one of its domains")
	case !authority.Google && !tenantForm.MatchString(g.Tenant):
		return fmt.Errorf("tenant %q is neither the tenant's id nor one of its domains", g.Tenant)
	case g.Kind == ClientCredentials && slices.Contains(shared, g.Tenant):
		return fmt.Errorf("an application needs its own tenant, not %q", g.Tenant)
	case g.Kind == ServiceAccount:
		return g.validateKey()
	case g.Key != "" || g.Subject != "":
		return fmt.Errorf("a key file and a subject belong to the grant service-account, not to %s", g.Kind)
	case !clientForm.MatchString(g.ClientID):
		return fmt.Errorf("client id %q: use the application's id", g.ClientID)
	case !printable(g.Secret, 1024):
		return errors.New("the client secret must be at most 1,024 octets of printable ASCII")
	case g.Kind == RefreshToken && g.Certificate != "":
		return errors.New("a certificate belongs to the grant client-credentials")
	case g.Kind == ClientCredentials && (g.Secret == "") == (g.Certificate == ""):
		return errors.New("client-credentials needs either a client secret or a client certificate: --client-secret-stdin or --client-certificate")
	case g.Certificate != "":
		_, err := g.keyPair()
		return err
	}
	return nil
}

func (g *Grant) validateKey() error {
	if g.ClientID != "" || g.Secret != "" || g.Certificate != "" {
		return errors.New("a service account has its key file only: no client id, secret or certificate")
	}
	if !printable(g.Subject, 320) || !strings.Contains(g.Subject, "@") {
		return fmt.Errorf("subject %q is not the address of a mailbox", g.Subject)
	}
	_, err := g.keyFile()
	return err
}

// keyFile is what is used of the file of a service account.
type keyFile struct {
	Type     string `json:"type"`
	Email    string `json:"client_email"`
	ID       string `json:"private_key_id"`
	Key      string `json:"private_key"`
	Universe string `json:"universe_domain"`
}

// keyFile reads the service account's file. Its errors repeat nothing of it.
func (g *Grant) keyFile() (keyFile, error) {
	var f keyFile
	if json.Unmarshal([]byte(g.Key), &f) != nil || f.Type != "service_account" {
		return f, errors.New("the key file is not the JSON file of a service account")
	}
	block, _ := pem.Decode([]byte(f.Key))
	if f.Email == "" || block == nil {
		return f, errors.New("the key file has no client_email or no private_key")
	}
	if _, err := x509.ParsePKCS8PrivateKey(block.Bytes); err != nil {
		if _, err := x509.ParsePKCS1PrivateKey(block.Bytes); err != nil {
			return f, errors.New("the private_key of the key file cannot be read")
		}
	}
	if f.Universe != "" && f.Universe != "googleapis.com" {
		return f, fmt.Errorf("the key file is for the cloud %q, and only googleapis.com is known", f.Universe)
	}
	return f, nil
}

// keyPair is the client certificate with its key. Its errors repeat nothing of the key.
func (g *Grant) keyPair() (tls.Certificate, error) {
	pair, err := tls.X509KeyPair([]byte(g.Certificate), []byte(g.Certificate))
	if err != nil {
		return pair, errors.New("the client certificate needs a file in PEM form with the certificate and its unencrypted key")
	}
	if _, is := pair.PrivateKey.(*rsa.PrivateKey); !is {
		return pair, errors.New("the client certificate's key is not RSA, and Microsoft accepts no other")
	}
	return pair, nil
}

// CertificateExpires is when the client certificate ends; zero without one.
func (g *Grant) CertificateExpires() time.Time {
	if g.Certificate == "" {
		return time.Time{}
	}
	pair, err := g.keyPair()
	if err != nil {
		return time.Time{}
	}
	return pair.Leaf.NotAfter
}

// credential names the account with its settings. Its salt keeps what is derived from a
// secret here from being guessed.
func (a *Account) credential() string {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err) // strings only
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:16])
}

// secrets must be in no text.
func (g *Grant) secrets() []string { return []string{g.Secret, g.Certificate, g.Key} }

// printable reports printable ASCII, spaces inside included, of at most that length.
func printable(s string, most int) bool {
	return len(s) <= most && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) < 0
}
