package route

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	"postern/relay/smtp"
)

// MaxConnections is the most concurrent connections that an upstream may be given.
const MaxConnections = 1000

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	hostForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$`)
)

// Validate returns in a sentence what is wrong with the account; the error is ErrInvalid.
func (u Upstream) Validate() error {
	switch {
	case !nameForm.MatchString(u.Name) || u.Name == "mx":
		return refuse(ErrInvalid, "upstream name %q: use 1 to 63 of a-z, 0-9, '.', '_' and '-', and not 'mx'", u.Name)
	case !validHost(u.Host):
		return refuse(ErrInvalid, "host %q is neither a DNS name nor an IP address", u.Host)
	case u.Port < 1 || u.Port > 65535:
		return refuse(ErrInvalid, "port %d is not between 1 and 65535", u.Port)
	case u.MaxConnections < 0 || u.MaxConnections > MaxConnections:
		return refuse(ErrInvalid, "%d connections: not between 0 and %d", u.MaxConnections, MaxConnections)
	}
	if err := u.validateTLS(); err != nil {
		return err
	}
	return u.validateAccount()
}

func (u Upstream) validateTLS() error {
	switch u.TLS {
	case TLSNone, TLSOpportunistic:
		if u.CA != "" {
			return refuse(ErrInvalid, "a CA has no use with TLS mode %q, which verifies nothing; use require or implicit", u.TLS)
		}
	case TLSRequire, TLSImplicit:
		if u.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(u.CA)) {
			return refuse(ErrInvalid, "the CA has no certificate in PEM form")
		}
	default:
		return refuse(ErrInvalid, "TLS mode %q is none of none, opportunistic, require and implicit", u.TLS)
	}
	return nil
}

func (u Upstream) validateAccount() error {
	if u.Username == "" {
		if u.Password != "" {
			return refuse(ErrInvalid, "a password needs a user name")
		}
		return nil
	}
	switch {
	case !u.Verified():
		return refuse(ErrInvalid, "credentials go only over verified TLS: mode %q does not verify, use require or implicit", u.TLS)
	case u.Password == "":
		return refuse(ErrInvalid, "user name %q needs a password", u.Username)
	case !credentialText(u.Username) || !credentialText(u.Password):
		// NUL separates the fields of AUTH PLAIN (RFC 4616 section 2).
		return refuse(ErrInvalid, "user name and password must be at most 1,024 octets without control characters")
	}
	return nil
}

// Verified reports that the server's certificate is verified in this TLS mode, so
// that credentials may be sent.
func (u Upstream) Verified() bool { return u.TLS == TLSRequire || u.TLS == TLSImplicit }

func credentialText(s string) bool {
	return len(s) <= 1024 && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

func validHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return !addr.IsUnspecified() && !addr.IsMulticast()
	}
	return len(host) <= 253 && hostForm.MatchString(host) && !looksLikeIPv4(host)
}

// looksLikeIPv4 reports a name whose last label is a number: no such name exists
// in DNS, it is a mistyped address.
func looksLikeIPv4(host string) bool {
	host = strings.TrimSuffix(host, ".")
	last := host[strings.LastIndexByte(host, '.')+1:]
	return strings.Trim(last, "0123456789") == ""
}

// normalise checks the rule and puts its domains into the form of their keys.
func (r *Rule) normalise() error {
	if r.Position < 0 {
		return refuse(ErrInvalid, "position %d is negative", r.Position)
	}
	if r.UserID < 0 {
		return refuse(ErrInvalid, "user id %d is negative", r.UserID)
	}
	for _, domain := range []*string{&r.SenderDomain, &r.RecipientDomain} {
		if *domain == "" {
			continue
		}
		address, err := smtp.ParseAddress("postmaster@" + *domain)
		if err != nil {
			return refuse(ErrInvalid, "domain %q: %v", *domain, err)
		}
		*domain = address.DomainKey()
	}
	for i, name := range r.Upstreams {
		for _, earlier := range r.Upstreams[:i] {
			if name == earlier {
				return refuse(ErrInvalid, "upstream %q is named twice", name)
			}
		}
	}
	return nil
}

// String describes the rule, for the audit.
func (r Rule) String() string {
	if r.MX() {
		return r.match() + " via mx"
	}
	return r.match() + " via " + strings.Join(r.Upstreams, ", ")
}

// match says in words what the rule matches.
func (r *Rule) match() string {
	var parts []string
	if r.UserID != 0 {
		parts = append(parts, fmt.Sprintf("user %d", r.UserID))
	}
	if r.SenderDomain != "" {
		parts = append(parts, "sender domain "+r.SenderDomain)
	}
	if r.RecipientDomain != "" {
		parts = append(parts, "recipient domain "+r.RecipientDomain)
	}
	if parts == nil {
		return "all mail (the default route)"
	}
	return strings.Join(parts, ", ")
}

func quoteAll(names []string) string {
	quoted := make([]string, len(names))
	for i, name := range names {
		quoted[i] = fmt.Sprintf("%q", name)
	}
	return strings.Join(quoted, " or ")
}
