package upstream

import (
	"cmp"
	"crypto/x509"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/emersion/go-sasl"

	"postern/auth"
	"postern/internal/refusal"
	"postern/relay/dkim"
	"postern/relay/smtp"
	"postern/relay/upstream/budget"
	"postern/relay/upstream/oauth"
)

// TLSMode says how a connection to an upstream is protected.
type TLSMode string

const (
	TLSNone          TLSMode = "none"          // never
	TLSOpportunistic TLSMode = "opportunistic" // STARTTLS when offered, certificate not verified
	TLSRequire       TLSMode = "require"       // STARTTLS, certificate verified
	TLSImplicit      TLSMode = "implicit"      // TLS from the first octet, certificate verified
)

// Account is an upstream: a smarthost, and our account with it if it has one. Programs see it as
// Listed.
type Account struct {
	Name           string       `json:"name"`
	Host           string       `json:"host"` // DNS name or IP address
	Port           int          `json:"port"`
	TLS            TLSMode      `json:"tls"`
	Username       string       `json:"username,omitempty"`       // "" for none
	Password       string       `json:"-"`                        // opened; "" for none
	Grant          oauth.Grant  `json:"-"`                        // for tokens, instead of a password; zero: none. Listed has its Kind only
	SecretExpires  string       `json:"secret_expires,omitempty"` // the last day of its secret, as 2027-01-31; "" if it is not known
	CA             string       `json:"-"`                        // PEM of the authorities to trust instead of the system's; "" for those
	Preset         string       `json:"preset,omitempty"`         // the provider, "" for Generic
	MaxConnections int          `json:"max_connections"`          // concurrent ones of each node; 0: the default
	MaxMessages    int          `json:"max_messages"`             // over one connection; 0: the default
	MaxRecipients  int          `json:"max_recipients"`           // in one transaction; 0: the default
	Senders        string       `json:"-"`                        // patterns of what it may send as, as ParseSenders gives them; "": as everybody
	RewriteSender  string       `json:"rewrite_sender,omitempty"` // the mailbox that sends in place of the message's own; "": none
	SendsAs        smtp.Address `json:"-"`                        // is RewriteSender, by Load
	IdleSeconds    int          `json:"idle_seconds"`             // that an unused connection is kept; 0: the default
	TLSName        string       `json:"tls_name,omitempty"`       // that its certificate must have; "": Host
	TLSPins        string       `json:"tls_pins,omitempty"`       // of PinsFrom: one of these keys, whoever certifies it; "": none
	Mechanism      string       `json:"auth_mechanism,omitempty"` // the only one of AUTH that is used; "": what the server takes
	InDoubt        string       `json:"in_doubt,omitempty"`       // what becomes of mail that it may have, of auth.DoubtPolicies; "": the first
	Budget         string       `json:"budget,omitempty"`         // of all nodes, as package budget reads it; "" for none
	DKIM           dkim.Mode    `json:"dkim"`                     // the keys that sign what it is given; "": dkim.Off
	Origin

	Replies *Replies `json:"-"` // what its replies mean
}

// OAuth is the account as a getter of tokens.
func (a *Account) OAuth() oauth.Account {
	return oauth.Account{Upstream: a.Name, Username: a.Username, Grant: a.Grant}
}

// Equal reports the same settings, whatever the replies mean and whoever may send: a connection
// with one serves the other.
func (a Account) Equal(b Account) bool {
	a.Replies, b.Replies = nil, nil
	a.Senders, b.Senders = "", ""
	a.InDoubt, b.InDoubt = "", ""
	return a == b
}

// Fill takes what is not set from the preset. Errors: refusal.ErrInvalid.
func (a *Account) Fill() error {
	p, err := presetNamed(cmp.Or(a.Preset, Generic))
	if err != nil {
		return err
	}
	if a.Host = cmp.Or(a.Host, p.Host); a.Host == "" && p.HostForm != "" {
		return refusal.Invalid("preset %s needs a host, of the form %s", a.Preset, p.HostForm)
	}
	a.TLS = cmp.Or(a.TLS, p.TLS)
	if a.Port == 0 {
		a.Port = p.portFor(a.TLS)
	}
	a.MaxConnections = cmp.Or(a.MaxConnections, p.MaxConnections)
	a.MaxMessages = cmp.Or(a.MaxMessages, p.MaxMessages)
	a.MaxRecipients = cmp.Or(a.MaxRecipients, p.MaxRecipients)
	a.Budget = cmp.Or(a.Budget, p.Budget)
	a.DKIM = cmp.Or(a.DKIM, p.DKIM, dkim.Off)
	return nil
}

// SetTLS changes the mode. The port follows only to and from implicit TLS, where no server takes
// the former one, and if it was the former mode's.
func (a *Account) SetTLS(mode TLSMode) {
	p, err := presetNamed(cmp.Or(a.Preset, Generic))
	if err == nil && (a.TLS == TLSImplicit) != (mode == TLSImplicit) && a.Port == p.portFor(a.TLS) {
		a.Port = 0
	}
	a.TLS = mode
}

// portFor is the port of the preset where its mode is used, else the mode's own (RFC 8314,
// RFC 6409, RFC 5321).
func (p *Preset) portFor(mode TLSMode) int {
	switch {
	case mode == p.TLS:
		return p.Port
	case mode == TLSImplicit:
		return 465
	case mode == TLSRequire:
		return 587
	}
	return 25
}

// The most that an upstream may be given.
const (
	mostConnections = 1000
	mostMessages    = 1_000_000
	mostRecipients  = 1000
	mostIdle        = 3600
)

// The mechanisms of AUTH, in the order in which they are tried: XOAUTH2 is what Microsoft and
// Google document.
var (
	byPassword = []string{sasl.Plain, sasl.Login}
	byToken    = []string{oauth.XOAuth2, sasl.OAuthBearer}
)

// Mechanisms are those of AUTH that can prove the account, in the order in which they are tried.
func (a *Account) Mechanisms() []string {
	switch {
	case a.Mechanism != "":
		return []string{a.Mechanism}
	case a.Grant.Kind != "":
		return slices.Clone(byToken)
	}
	return slices.Clone(byPassword)
}

var (
	nameForm = regexp.MustCompile(`^[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?$`)
	hostForm = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?(\.[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?)*\.?$`)
)

// Validate returns in a sentence what is wrong with the account; the error is refusal.ErrInvalid.
func (a Account) Validate() error {
	switch {
	case !nameForm.MatchString(a.Name) || a.Name == "mx":
		return refusal.Invalid("upstream name %q: use 1 to 63 of a-z, 0-9, '.', '_' and '-', and not 'mx'", a.Name)
	case !validHost(a.Host):
		return refusal.Invalid("host %q is neither a DNS name nor an IP address", a.Host)
	case a.Port < 1 || a.Port > 65535:
		return refusal.Invalid("port %d is not between 1 and 65535", a.Port)
	}
	if _, err := presetNamed(cmp.Or(a.Preset, Generic)); err != nil {
		return err
	}
	for _, limit := range []struct {
		n, most int
		what    string
	}{{a.MaxConnections, mostConnections, "connections"}, {a.MaxMessages, mostMessages, "messages"},
		{a.MaxRecipients, mostRecipients, "recipients"}, {a.IdleSeconds, mostIdle, "seconds of idle time"}} {
		if limit.n < 0 || limit.n > limit.most {
			return refusal.Invalid("%d %s: not between 0 and %d", limit.n, limit.what, limit.most)
		}
	}
	if a.DKIM != "" && !a.DKIM.Valid() {
		return refusal.Invalid("dkim %q is none of off, rsa and both", a.DKIM)
	}
	if err := auth.CheckDoubtPolicy(a.InDoubt); err != nil {
		return refusal.Invalid("%v", err)
	}
	_, budgetErr := budget.Parse(a.Budget)
	_, senderErr := a.sendsAs()
	return cmp.Or(a.validateOrigin(), budgetErr, a.validateTLS(), senderErr, a.validateMechanism(), a.validateAccount())
}

func (a Account) validateMechanism() error {
	able := byPassword
	if a.Grant.Kind != "" {
		able = byToken
	}
	switch {
	case a.Mechanism == "":
	case !slices.Contains(slices.Concat(byPassword, byToken), a.Mechanism):
		return refusal.Invalid("mechanism %q is none of auto, plain, login, xoauth2 and oauthbearer", strings.ToLower(a.Mechanism))
	case a.Username == "" || !slices.Contains(able, a.Mechanism):
		return refusal.Invalid("mechanism %s does not suit this account: plain and login are for passwords, xoauth2 and oauthbearer for --oauth", strings.ToLower(a.Mechanism))
	}
	return nil
}

func (a Account) validateOrigin() error {
	if addr, err := netip.ParseAddr(a.Host); err == nil && !a.Allows(addr) {
		return refusal.Invalid("host %s is not an address of the version of IP that --source or --ip allows", a.Host)
	}
	return a.Origin.Validate()
}

func (a Account) validateTLS() error {
	switch a.TLS {
	case TLSNone, TLSOpportunistic:
		if a.CA+a.TLSName+a.TLSPins != "" {
			return refusal.Invalid("a CA, TLS name or pin has no use with TLS mode %q, which verifies nothing; use require or implicit", a.TLS)
		}
	case TLSRequire, TLSImplicit:
		switch {
		case a.TLSPins != "" && a.CA+a.TLSName != "":
			return refusal.Invalid("a pin replaces authority and name: give no CA and no TLS name with it")
		case a.TLSName != "" && !validHost(a.TLSName):
			return refusal.Invalid("TLS name %q is neither a DNS name nor an IP address", a.TLSName)
		case a.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(a.CA)):
			return refusal.Invalid("the CA has no certificate in PEM form")
		}
	default:
		return refusal.Invalid("TLS mode %q is none of none, opportunistic, require and implicit", a.TLS)
	}
	return nil
}

func (a Account) validateAccount() error {
	if a.SecretExpires != "" && dayOf(a.SecretExpires).IsZero() {
		return refusal.Invalid("%q is not a date like 2027-01-31", a.SecretExpires)
	}
	if a.Username == "" && a.Grant.Kind == "" {
		if a.Password != "" {
			return refusal.Invalid("a password needs a user name")
		}
		return nil
	}
	switch {
	case !a.Verified():
		return refusal.Invalid("credentials are sent only over verified TLS: mode %q does not verify, use require or implicit", a.TLS)
	case a.Grant.Kind != "":
		return a.validateGrant()
	case a.Password == "":
		return refusal.Invalid("user name %q needs a password: --password-stdin", a.Username)
	case !credentialText(a.Username) || !credentialText(a.Password):
		// NUL separates the fields of AUTH PLAIN (RFC 4616 section 2).
		return refusal.Invalid("user name and password must be at most 1,024 octets without control characters")
	}
	return nil
}

func (a Account) validateGrant() error {
	if a.Password != "" || !credentialText(a.Username) {
		return refusal.Invalid("an account with a grant has a user name and no password")
	}
	if err := a.Grant.Complete(a.Username); err != nil { // of this copy
		return refusal.Invalid("%v", err)
	}
	return nil
}

// Verified reports that the server's certificate is verified in this TLS mode, so
// that credentials may be sent.
func (a Account) Verified() bool { return a.TLS == TLSRequire || a.TLS == TLSImplicit }

func credentialText(s string) bool {
	return len(s) <= 1024 && strings.IndexFunc(s, func(r rune) bool { return r < ' ' || r == 0x7f }) < 0
}

func validHost(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		addr = addr.Unmap() // ::ffff:0.0.0.0 is this machine, too
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
