package check

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"

	"postern/relay/connect"
	"postern/relay/resolver"
	"postern/relay/smtp"
	"postern/relay/upstream"
	"postern/relay/upstream/oauth"
)

// Hint is what helps against a step of a probe of up that failed.
func Hint(up *upstream.Account, s connect.Step) string {
	set := "'postern upstream set " + up.Name + "'"
	if fault := (*oauth.Fault)(nil); errors.As(s.Err, &fault) {
		return tokenHint(up, fault)
	}
	if !s.Reply.IsZero() {
		if s.Row != nil && s.Row.Do != "" {
			return s.Row.Do
		}
		return replyHint(up, s, set)
	}
	if upstream.IsSender(s.Err) {
		return "its --senders do not allow this sender: add it with " + set + ", or send by another upstream"
	}
	switch s.Stage {
	case connect.StageLookup:
		return lookupHint(s.Err, set)
	case connect.StageLoop:
		return "correct --host with " + set + ": it leads to a listener of this server"
	case smtp.StageConnect:
		return connectHint(up, s, set)
	case smtp.StageGreeting, smtp.StageHello:
		if up.TLS != upstream.TLSImplicit {
			return fmt.Sprintf("if port %d begins with TLS, as 465 does, set --tls implicit with %s; otherwise ask the upstream's operator", up.Port, set)
		}
	case smtp.StageTLS:
		return tlsHint(up, s.Err, set)
	case smtp.StageAuth:
		return "correct --auth-mechanism, or the kind of the account (--password-stdin or --oauth), with " + set + "; some servers offer AUTH at another port only"
	case connect.StageBudget:
		return fmt.Sprintf("try again when less mail goes out ('postern upstream show %s' says what is used), or pause it for the test with 'postern upstream pause %[1]s'", up.Name)
	case connect.StageToken:
		return "see docs/oauth.md; the database has to be reachable too"
	}
	return "try again; if it persists, ask the upstream's operator, or look for a firewall that inspects SMTP"
}

// pages are where the admins of authorities mend things.
var pages = map[string]string{
	"microsoft": "https://entra.microsoft.com", "microsoft-gov": "https://portal.azure.us", "microsoft-dod": "https://portal.azure.us",
	"microsoft-china": "https://portal.azure.cn", "google": "https://admin.google.com",
}

func tokenHint(up *upstream.Account, fault *oauth.Fault) string {
	switch page := pages[up.Grant.Authority]; {
	case fault.Login:
		return "run 'postern upstream login " + up.Name + "'"
	case fault.Do == "" && fault.Code == "":
		return "see docs/oauth.md; nodes need HTTPS to the authority"
	case page == "":
		return fault.Do
	case fault.Do == "":
		return "see " + page + " and docs/oauth.md"
	default:
		return fault.Do + "; the admin's page is " + page
	}
}

func lookupHint(err error, set string) string {
	if question := (*resolver.Error)(nil); errors.Is(err, resolver.ErrNone) {
		return "there is no such name: correct --host with " + set
	} else if errors.As(err, &question) {
		return "the resolver of this machine does not answer: see /etc/resolv.conf, or servers in [dns]"
	}
	return "correct --host, --source or --ip with " + set + ", or source and ip in [delivery]"
}

func connectHint(up *upstream.Account, s connect.Step, set string) string {
	var timeout net.Error
	var source *connect.SourceError
	switch {
	case errors.As(s.Err, &source):
		return "set another --source with " + set + ", or give this machine the address"
	case errors.Is(s.Err, syscall.ECONNREFUSED):
		return fmt.Sprintf("nothing listens at port %d there, or a firewall refuses: correct the port of --host with %s; providers have 587 and 465", up.Port, set)
	case s.Addr.Addr().Is6() && (errors.Is(s.Err, syscall.ENETUNREACH) || errors.Is(s.Err, syscall.EHOSTUNREACH) || errors.Is(s.Err, syscall.EADDRNOTAVAIL)):
		return "this machine has no IPv6 route: mail uses another address; --ip 4 omits this one"
	case errors.As(s.Err, &timeout) && timeout.Timeout() && up.Port == 25:
		return "a firewall drops it: many hosting companies block port 25; ask for it, or use 587 or 465 with " + set
	}
	return "look for firewalls here and at the hosting company, and at the host and port of --host"
}

func tlsHint(up *upstream.Account, err error, set string) string {
	var (
		record    tls.RecordHeaderError
		name      x509.HostnameError
		authority x509.UnknownAuthorityError
		invalid   x509.CertificateInvalidError
		alert     tls.AlertError
	)
	switch {
	case errors.As(err, &record):
		return fmt.Sprintf("port %d begins without TLS: set --tls require with %s, or the port to 465", up.Port, set)
	case errors.As(err, &name):
		return fmt.Sprintf("set --host, or --tls-name, to a name that it has, with %s: %s", set, strings.Join(CertificateNames(name.Certificate), ", "))
	case errors.As(err, &authority):
		return "give the CA's certificate by --ca-file, or the server's key by --tls-pin, with " + set + "; a public server should have a known one"
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "compare its dates with this machine's clock, and tell the upstream's operator"
	case strings.Contains(err.Error(), "key is none of those that are pinned"):
		return "make sure that the key is the upstream's, then add its --tls-pin with " + set
	case strings.Contains(err.Error(), "does not offer STARTTLS"):
		return fmt.Sprintf("a firewall may hide it; else port %d is for another use: try 587, or 465 with --tls implicit, by %s", up.Port, set)
	case errors.As(err, &alert):
		return "the server refused the handshake: it may be older than TLS 1.2, or require another --tls-name"
	}
	return "look for a firewall that inspects SMTP; the server may be older than TLS 1.2"
}

// CertificateNames are the names and addresses that a certificate is for.
func CertificateNames(c *x509.Certificate) []string {
	names := slices.Clone(c.DNSNames)
	for _, ip := range c.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// replyHint is for a refusal that the upstream's table has no advice for.
func replyHint(up *upstream.Account, s connect.Step, set string) string {
	switch code := s.Reply.Code; {
	case s.Stage == smtp.StageAuth && code == 535 && up.Grant.Kind != "":
		return "the server rejects the token: check the account's mailbox, its permissions, and docs/oauth.md"
	case s.Stage == smtp.StageAuth && code == 535:
		return "correct the password with 'postern upstream set " + up.Name + " --password-stdin', or --username too; some providers want a password for applications"
	case s.Stage == smtp.StageAuth && code == 534:
		return "the provider requires another login: a password for applications, --oauth, or another --auth-mechanism, with " + set
	case code == 530 && up.Username == "":
		return "it requires an account: give --username and a password, or --oauth, with " + set
	case code == 530 || code == 538:
		return "it requires TLS or a login first: set --tls require or implicit with " + set
	case s.Stage == smtp.StageGreeting || s.Stage == smtp.StageHello:
		return "ask the upstream's operator: it may not know this address (--source), or not accept the name in EHLO (--hello)"
	case s.Stage == smtp.StageMail:
		return "the account may not send as this sender: allow it at the provider, or use another"
	case s.Stage == smtp.StageRcpt:
		return "it accepts no mail for this recipient from here: try another recipient, or ask the upstream's operator"
	case s.Reply.IsTemporary():
		return "try again later; if it persists, ask the upstream's operator"
	}
	return "ask the upstream's operator; 'postern upstream classify " + up.Name + "' says what the reply means for mail"
}
