package smarthost

import (
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"postern/cmd/postern/account"
	"postern/cmd/postern/secret"
	"postern/internal/refusal"
	"postern/internal/units"
	"postern/relay/dkim"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// TLSModes are the values of --tls.
func TLSModes() []string {
	return []string{string(upstream.TLSNone), string(upstream.TLSOpportunistic), string(upstream.TLSRequire), string(upstream.TLSImplicit)}
}

// Flags are the settings of an upstream.
type Flags struct {
	host, mode, preset, username, caFile, expires string
	tlsName, mechanism, idle, inDoubt             string
	pins                                          []string
	origin                                        upstream.Origin
	from                                          secret.Source
	tokens                                        grantFlags
	connections, messages, recipients             int
	senders                                       []string
	rewriteSender, budget, dkim                   string
}

// Add adds them to cmd.
func (u *Flags) Add(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&u.preset, "preset", "", "`NAME` of the provider: "+strings.Join(upstream.Presets(), ", "))
	f.StringVar(&u.host, "host", "", "`HOST[:PORT]` (default port 465 for implicit, 587 for require, else 25)")
	f.StringVar(&u.mode, "tls", "", "TLS `MODE`: none, opportunistic, require (the default) or implicit")
	f.StringVar(&u.username, "username", "", "`NAME` of the account at the smarthost")
	u.from.Flags(cmd, "password")
	u.tokens.flags(cmd)
	f.StringVar(&u.expires, "secret-expires", "", "last valid `DATE` of the password or secret, such as 2027-01-31; you are warned before it (default: the certificate's)")
	f.StringVar(&u.caFile, "ca-file", "", "PEM `FILE` of the CAs to trust instead of the system's")
	f.StringVar(&u.tlsName, "tls-name", "", "`NAME` that the server's certificate must have (default: that of --host)")
	f.StringSliceVar(&u.pins, "tls-pin", nil, "`sha256:HASH` of the certificate's public key, instead of issuer and name; repeat to pin the next key too")
	f.StringVar(&u.mechanism, "auth-mechanism", "auto", "SASL `MECHANISM`: plain, login, xoauth2, oauthbearer or auto (first that the server offers)")
	f.StringVar(&u.origin.Source, "source", "", "the relay's `ADDRESS`, or IPv4,IPv6 (default: delivery.source)")
	f.StringVar(&u.origin.IP, "ip", "", "IP `VERSION`: 4, 6 or both (default: those of the source)")
	f.StringVar(&u.origin.Hello, "hello", "", "the relay's `NAME` in EHLO (default: delivery.hello)")
	f.StringVar(&u.idle, "idle", "", "`TIME` that an unused connection is kept, such as 30s (default: delivery.idle_time)")
	_ = cmd.RegisterFlagCompletionFunc("auth-mechanism", cobra.FixedCompletions([]string{"auto", "plain", "login", "xoauth2", "oauthbearer"}, cobra.ShellCompDirectiveNoFileComp))
	f.IntVar(&u.connections, "connections", 0, "at most `N` concurrent connections from each node (default: delivery.connections)")
	f.IntVar(&u.messages, "messages-per-connection", 0, "at most `N` messages over one connection (default: delivery.messages_per_connection)")
	account.DoubtFlag(cmd, &u.inDoubt)
	f.StringSliceVar(&u.senders, "senders", nil, "`PATTERNS` of addresses that it may send as, like those of 'postern sender allow', or domains (default: all)")
	f.StringVar(&u.rewriteSender, "rewrite-sender", "", "`ADDRESS` to send as instead, in the envelope and in From")
	f.IntVar(&u.recipients, "recipients-per-transaction", 0, "at most `N` recipients of one transaction (default: delivery.recipients_per_transaction)")
	f.StringVar(&u.budget, "budget", "", "the most that all nodes together send: a `BUDGET` such as 'messages 30/m, recipients 10000/d, sessions 3', or none")
	f.StringVar(&u.dkim, "dkim", "", "which `SIGNATURES` to add: off, rsa or both (default: the preset's; rsa without one)")
	_ = cmd.RegisterFlagCompletionFunc("dkim", cobra.FixedCompletions([]string{string(dkim.Off), string(dkim.OnlyRSA), string(dkim.Both)}, cobra.ShellCompDirectiveNoFileComp))
}

// Apply puts the flags that are given into an account, and what is not set then as the preset
// has it.
func (u *Flags) Apply(cmd *cobra.Command, to *upstream.Account) error {
	given := cmd.Flags().Changed
	// The preset comes before --tls, which may change its port.
	for name, value := range map[string]struct{ from, to *string }{
		"tls-name": {&u.tlsName, &to.TLSName}, "source": {&u.origin.Source, &to.Source}, "ip": {&u.origin.IP, &to.IP}, "hello": {&u.origin.Hello, &to.Hello},
		"in-doubt": {&u.inDoubt, &to.InDoubt}, "preset": {&u.preset, &to.Preset}, "username": {&u.username, &to.Username},
		"rewrite-sender": {&u.rewriteSender, &to.RewriteSender}, "secret-expires": {&u.expires, &to.SecretExpires}, "budget": {&u.budget, &to.Budget},
	} {
		if given(name) {
			*value.to = *value.from
		}
	}
	for name, value := range map[string]struct{ from, to *int }{
		"connections": {&u.connections, &to.MaxConnections}, "messages-per-connection": {&u.messages, &to.MaxMessages},
		"recipients-per-transaction": {&u.recipients, &to.MaxRecipients},
	} {
		if given(name) {
			*value.to = *value.from
		}
	}
	if day, err := time.Parse(time.DateOnly, u.expires); given("secret-expires") && err == nil && time.Now().UTC().After(day.AddDate(0, 0, 1)) {
		return refusal.Invalid("--secret-expires: %s is over: give the last day on which the secret is valid", u.expires)
	}
	if given("dkim") {
		to.DKIM = dkim.Mode(u.dkim)
	}
	if given("tls") {
		to.SetTLS(upstream.TLSMode(u.mode))
	}
	if given("host") {
		if err := splitHost(u.host, to); err != nil {
			return err
		}
	}
	if given("ca-file") {
		to.CA = ""
		if u.caFile != "" {
			pem, err := os.ReadFile(u.caFile)
			if err != nil {
				return fmt.Errorf("--ca-file: %w", err)
			}
			if to.CA = string(pem); to.CA == "" {
				return refusal.Invalid("--ca-file: %s is empty", u.caFile)
			}
		}
	}
	if given("senders") {
		var err error
		if to.Senders, err = upstream.ParseSenders(u.senders); err != nil {
			return fmt.Errorf("--senders: %w", err)
		}
	}
	if given("tls-pin") {
		pins, err := upstream.PinsFrom(u.pins)
		if err != nil {
			return err
		}
		to.TLSPins = pins
	}
	if given("auth-mechanism") {
		to.Mechanism = strings.TrimPrefix(strings.ToUpper(u.mechanism), "AUTO")
	}
	if given("idle") {
		if err := u.setIdle(to); err != nil {
			return err
		}
	}
	return to.Fill()
}

// setIdle puts --idle, in whole seconds, into an account.
func (u *Flags) setIdle(to *upstream.Account) error {
	to.IdleSeconds = 0
	if u.idle == "" || u.idle == "0" {
		return nil
	}
	span, err := units.ParseSpan(u.idle)
	if err != nil || span < time.Second || span%time.Second != 0 {
		return refusal.Invalid("--idle: %q is not a time of whole seconds, such as 30s", u.idle)
	}
	to.IdleSeconds = int(span / time.Second)
	return nil
}

// Proves reports that they say what the account is to be proved by.
func (u *Flags) Proves() bool { return u.from.Given() || u.tokens.given() }

// Proof reads what the account is to be proved by, if the flags say where, and returns what
// puts it there.
func (u *Flags) Proof(stdin io.Reader, warn func(error)) (put func(*upstream.Account) error, err error) {
	switch {
	case u.from.Given():
		password, err := u.from.Read(stdin, warn)
		return func(to *upstream.Account) error {
			to.Password, to.Grant = password, oauth.Grant{}
			if u.expires == "" {
				to.SecretExpires = "" // that was the former one's
			}
			return nil
		}, err
	case u.tokens.given():
		grant, err := u.tokens.read(stdin, warn)
		return func(to *upstream.Account) error {
			to.Password, to.Grant = "", grant
			if u.expires == "" {
				to.SecretExpires = ""
				if ends := grant.CertificateExpires(); !ends.IsZero() {
					to.SecretExpires = ends.UTC().Format(time.DateOnly)
				}
			}
			return nil
		}, err
	}
	return func(*upstream.Account) error { return nil }, nil
}

// splitHost takes HOST, HOST:PORT, [IPv6]:PORT or a bare IPv6 address. Without a port it leaves
// that of the account.
func splitHost(host string, up *upstream.Account) error {
	if strings.Contains(host, "://") {
		return refusal.Invalid("--host: %q is a URL: write HOST[:PORT]", host)
	}
	up.Host = host
	if inner, ok := strings.CutPrefix(host, "["); ok && strings.HasSuffix(inner, "]") {
		up.Host = strings.TrimSuffix(inner, "]")
	}
	if h, p, err := net.SplitHostPort(host); err == nil {
		port, err := strconv.Atoi(p)
		if err != nil {
			return refusal.Invalid("--host: port %q is not a number", p)
		}
		if port == 0 {
			return refusal.Invalid("--host: port 0 is not between 1 and 65535")
		}
		up.Host, up.Port = h, port
	}
	return nil
}
