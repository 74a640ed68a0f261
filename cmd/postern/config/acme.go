package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"unicode"

	"postern/internal/owned"
	"postern/relay/acme"
	"postern/relay/smtp"
)

// ACME says how certificates are got from an authority; without names none are.
type ACME struct {
	Names          []string `toml:"names"`
	Email          string   `toml:"email"`
	Agree          bool     `toml:"agree"`
	Directory      string   `toml:"directory"`
	DirectoryCA    string   `toml:"directory_ca"`
	Challenge      string   `toml:"challenge"`
	HTTPAddress    string   `toml:"http_address"`
	TLSALPNAddress string   `toml:"tls_alpn_address"`
	EABKeyID       string   `toml:"eab_key_id"`
	EABKeyFile     string   `toml:"eab_key_file"`
	RFC2136        RFC2136  `toml:"rfc2136"`
}

type RFC2136 struct {
	Server       string `toml:"server"`
	Zone         string `toml:"zone"`
	KeyName      string `toml:"key_name"`
	KeyAlgorithm string `toml:"key_algorithm"`
	KeyFile      string `toml:"key_file"`
	Resolver     string `toml:"resolver"`
}

func defaultACME() ACME {
	return ACME{
		Directory: acme.LetsEncrypt, Challenge: string(acme.HTTP01),
		HTTPAddress: ":80", TLSALPNAddress: ":443",
		RFC2136: RFC2136{KeyAlgorithm: "hmac-sha256"},
	}
}

func (c *ACME) On() bool { return len(c.Names) > 0 }

// paths are those that are taken from the folder of the configuration file.
func (c *ACME) paths() []*string {
	return []*string{&c.DirectoryCA, &c.EABKeyFile, &c.RFC2136.KeyFile}
}

func (c *ACME) validate() error {
	if !c.On() {
		unset := *c
		unset.Names = nil
		if !reflect.DeepEqual(unset, defaultACME()) {
			return errors.New("acme: names is empty, so no certificate would be ordered: name the hosts, or leave [acme] out")
		}
		return nil
	}
	for _, name := range c.Names {
		host, wildcard := strings.CutPrefix(name, "*.")
		if strings.ContainsFunc(host, func(r rune) bool { return r > unicode.MaxASCII }) {
			return fmt.Errorf("acme: names: %q must be written in ASCII, as xn--…", name)
		}
		if !smtp.ValidDomain(host) || !strings.Contains(host, ".") {
			return fmt.Errorf("acme: names: %q is not a name that a CA issues a certificate for; write a host's public DNS name", name)
		}
		if wildcard && c.Challenge != string(acme.DNS01) {
			return fmt.Errorf("acme: names: %q needs challenge = \"dns-01\"", name)
		}
	}
	if local, domain, ok := strings.Cut(c.Email, "@"); !ok || local == "" || !smtp.ValidDomain(domain) {
		return errors.New("acme: email must be an address at which the CA can reach you")
	}
	u, err := url.Parse(c.Directory)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("acme: directory %q must be an https URL", c.Directory)
	}
	if !c.Agree {
		return fmt.Errorf("acme: set agree = true when you accept the terms of service of %s; nothing is ordered without", u.Host)
	}
	if (c.EABKeyID == "") != (c.EABKeyFile == "") {
		return errors.New("acme: eab_key_id and eab_key_file go together")
	}
	return c.validateChallenge()
}

func (c *ACME) validateChallenge() error {
	unset := defaultACME().RFC2136
	if c.Challenge != string(acme.DNS01) && c.RFC2136 != unset {
		return errors.New("acme: [acme.rfc2136] is for challenge = \"dns-01\"")
	}
	switch acme.Challenge(c.Challenge) {
	case acme.HTTP01:
		return validatePort("acme: http_address", c.HTTPAddress)
	case acme.TLSALPN01:
		return validatePort("acme: tls_alpn_address", c.TLSALPNAddress)
	case acme.DNS01:
		return c.RFC2136.validate()
	}
	return fmt.Errorf("acme: challenge must be \"http-01\", \"tls-alpn-01\" or \"dns-01\", not %q", c.Challenge)
}

func validatePort(key, address string) error {
	if _, _, err := net.SplitHostPort(address); err != nil {
		return fmt.Errorf("%s %q must be host:port, or :port for all addresses", key, address)
	}
	return nil
}

func (c *RFC2136) validate() error {
	switch {
	case c.Server == "" || c.KeyName == "" || c.KeyFile == "":
		return errors.New("acme: challenge = \"dns-01\" needs server, key_name and key_file in [acme.rfc2136]")
	case !slices.Contains(acme.TSIGAlgorithms, c.KeyAlgorithm):
		return fmt.Errorf("acme.rfc2136: key_algorithm must be one of %s, not %q", strings.Join(acme.TSIGAlgorithms, ", "), c.KeyAlgorithm)
	case c.Zone != "" && !smtp.ValidDomain(strings.TrimSuffix(c.Zone, ".")):
		return fmt.Errorf("acme.rfc2136: zone %q is not a domain name", c.Zone)
	}
	if err := validatePort("acme.rfc2136: server", c.Server); err != nil {
		return err
	}
	if c.Resolver != "" {
		return validatePort("acme.rfc2136: resolver", c.Resolver)
	}
	return nil
}

// Address is where the authority's validations are answered.
func (c *ACME) Address() string {
	if c.Challenge == string(acme.TLSALPN01) {
		return c.TLSALPNAddress
	}
	return c.HTTPAddress
}

func (c *RFC2136) Provider() (*acme.RFC2136, error) {
	secret, err := ReadKeyFile(c.KeyFile)
	if err != nil {
		return nil, fmt.Errorf("acme.rfc2136: key_file: %w", err)
	}
	if err := acme.ValidTSIGSecret(secret); err != nil {
		return nil, fmt.Errorf("acme.rfc2136: key_file: %s: %w", c.KeyFile, err)
	}
	return &acme.RFC2136{
		Server: c.Server, Zone: c.Zone, KeyName: c.KeyName, KeyAlgorithm: c.KeyAlgorithm, KeySecret: secret, Resolver: c.Resolver,
	}, nil
}

// ReadKeyFile reads a key from a file, "" without a path. One that everybody may read is
// refused: nothing but this program needs it.
func ReadKeyFile(path string) (string, error) {
	if path == "" {
		return "", nil
	}
	text, err := owned.ReadSecret(path, nil)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(text)), nil
}

// ReadRoots reads authorities' certificates; nil, the system's, without a path.
func ReadRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	text, err := owned.Read(path)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s holds no certificate in PEM", path)
	}
	return pool, nil
}

// Covers says whether one of the names is hostname, or a wildcard above it.
func (c *ACME) Covers(hostname string) bool {
	_, above, _ := strings.Cut(hostname, ".")
	return slices.ContainsFunc(c.Names, func(name string) bool {
		return strings.EqualFold(name, hostname) || strings.EqualFold(name, "*."+above)
	})
}
