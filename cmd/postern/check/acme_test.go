package check

import (
	"testing"
	"time"

	"postern/cmd/postern/config"
	"postern/internal/smtptest"
	"postern/relay/acme"
)

// ordering gives the patient a certificate by ACME in the place of that in files.
func ordering(_ *testing.T, p *patient) {
	p.c.cfg.TLS = config.TLS{}
	p.c.cfg.ACME = config.Defaults().ACME
	p.c.cfg.ACME.Names, p.c.cfg.ACME.HTTPAddress = []string{patientName}, "127.0.0.1:0"
	p.view = &mailView{certificates: []acme.Record{{
		Name: patientName, Issuer: "Test CA", NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(0, 0, 90)}}}
}

func recorded(change func(*acme.Record)) func(*testing.T, *patient) {
	return func(_ *testing.T, p *patient) { change(&p.view.certificates[0]) }
}

func failing(r *acme.Record) {
	r.Failures, r.FailingSince, r.LastError = 3, time.Now().Add(-time.Hour), "no valid A records"
}

func acmeFaults() []fault {
	return []fault{
		{"acme.ok", "by Test CA", nothing},
		{"acme.waiting", "nothing is known", seen(func(v *mailView) { v.certificates = nil })},
		{"acme.failing", "no valid A records", recorded(func(r *acme.Record) { failing(r); r.NotAfter = time.Time{} })},
		{"acme.renewal", "no valid A records", recorded(failing)},
		{"acme.expired", "no valid A records", recorded(func(r *acme.Record) { failing(r); r.NotAfter = time.Now().Add(-time.Minute) })},
		{"tls.ending", "within the hour", recorded(func(r *acme.Record) { r.NotAfter = time.Now().Add(time.Minute) })},
		{"acme.file", "directory_ca", setting(func(c *config.Config) { c.ACME.DirectoryCA = "/nowhere/ca.pem" })},
		{"acme.file", "eab_key_file", setting(func(c *config.Config) { c.ACME.EABKeyFile = "/nowhere/eab" })},
		{"acme.file", "key_file", setting(func(c *config.Config) {
			c.ACME.Challenge, c.ACME.RFC2136.KeyFile = string(acme.DNS01), "/nowhere/tsig"
		})},
		{"acme.port", "in use", func(t *testing.T, p *patient) { p.c.cfg.ACME.HTTPAddress = smtptest.Start(t, smtptest.Config{}).Addr() }},
		{"tls.name", "it is for other.test and not for the hostname", setting(func(c *config.Config) { c.ACME.Names = []string{"other.test"} })},
	}
}

func TestCheckFindsFaultsOfACME(t *testing.T) {
	t.Parallel()
	find(t, acmeFaults(), "certificate", ordering)
}

func TestCheckFindsNamesThatCannotBeValidated(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	ordering(t, p)
	wantNone(t, p.look(t.Context(), "dns"), "acme.no-address")
	p = newPatient(t)
	ordering(t, p)
	p.c.cfg.ACME.Names = []string{"gone.test"}
	wantFinding(t, p.look(t.Context(), "dns"), "acme.no-address", "not in DNS")
}

// A wildcard is for the names one level below.
func TestACMECovers(t *testing.T) {
	t.Parallel()
	c := config.ACME{Names: []string{"a.example.com", "*.example.org"}}
	for name, want := range map[string]bool{"a.example.com": true, "A.example.COM": true, "b.example.com": false,
		"x.example.org": true, "example.org": false, "y.x.example.org": false} {
		if c.Covers(name) != want {
			t.Errorf("%s: %v", name, !want)
		}
	}
}

// With several pairs it is enough that one is for the hostname; each is looked at.
func TestCheckLooksAtEachPair(t *testing.T) {
	t.Parallel()
	p := newPatient(t)
	second := t.TempDir()
	cert, key := p.ca.LeafBetween(t, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "other.test").WriteFiles(t, second)
	p.c.cfg.TLS.Pairs = []config.Pair{{Certificate: cert, Key: key}}
	found := p.look(t.Context(), "certificate")
	wantFinding(t, found, "tls.expired", cert)
	wantFinding(t, found, "tls.ok", patientName)
	wantNone(t, found, "tls.name")
}
