package peers

import (
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
	"testing"

	"postern/internal/serve"
)

// A Satellite is a Postfix that takes mail of this machine without asking who it is,
// and hands it to its relay host.
type Satellite struct {
	port    int
	postfix *postfix
}

// StartSatellite starts a Postfix with these parameters of main.cf for the time of the
// test. Where it cannot run the test is skipped with the reason.
func StartSatellite(t testing.TB, main map[string]string) *Satellite {
	t.Helper()
	cache := requireCache(t)
	if os.Geteuid() != 0 {
		t.Skip(errNotRoot)
	}
	dir, err := serverDir("", "satellite")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // a leftover in the temporary folder does no harm
	s := &Satellite{}
	if s.port, err = serve.FreePort(); err != nil {
		t.Fatal(err)
	}
	identity, err := makeCertificate(dir)
	if err != nil {
		t.Fatal(err)
	}
	parameters := map[string]string{
		"mynetworks": "127.0.0.0/8", "smtpd_sasl_auth_enable": "no", "smtpd_relay_restrictions": "permit_mynetworks, reject",
		"local_header_rewrite_clients": "permit_mynetworks", "smtpd_tls_security_level": "none", "smtp_host_lookup": "native",
	}
	for name, value := range main {
		parameters[name] = value
	}
	s.postfix, err = cache.runPostfix(t.Context(), postfixSpec{
		dir: dir, ports: []int{s.port}, user: "nobody@example.com", password: "none", identity: identity, main: parameters,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("log of the satellite %s:\n%s", filepath.Base(dir), s.postfix.log())
		}
		s.postfix.stop()
	})
	return s
}

// Send gives it a message, as a program on its machine would.
func (s *Satellite) Send(from, to, message string) error {
	if err := smtp.SendMail(loopback(s.port), nil, from, []string{to}, []byte(message)); err != nil {
		return fmt.Errorf("hand the message to the satellite: %w", err)
	}
	return nil
}
