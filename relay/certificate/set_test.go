package certificate

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/internal/logtest"
	"postern/internal/smtptest"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// leafOf is the certificate that a client without SNI gets.
func leafOf(t *testing.T, s *Set) *x509.Certificate {
	t.Helper()
	cert, err := s.GetCertificate(&tls.ClientHelloInfo{})
	must(t, err)
	return cert.Leaf
}

// TestFilesReload replaces the files while they are in use.
func TestFilesReload(t *testing.T) {
	t.Parallel()
	dir, log := t.TempDir(), &logtest.Lines{}
	ca := smtptest.NewCA(t)
	ca.Leaf(t, "one.test").WriteFiles(t, dir)
	pair := Pair{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")}
	set, err := Open(Config{Hostname: "one.test", Pairs: []Pair{pair}, Log: log.Logger()})
	must(t, err)
	set.files[0].every = 0
	at := time.Now().Add(-time.Hour)
	age := func() { // file systems may keep time too coarsely for a test
		at = at.Add(time.Minute)
		for _, f := range []string{pair.Certificate, pair.Key} {
			if err := os.Chtimes(f, at, at); err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
		}
	}
	want := func(name string) {
		t.Helper()
		if leaf := leafOf(t, set); leaf.DNSNames[0] != name {
			t.Errorf("the certificate is for %v, want %s", leaf.DNSNames, name)
		}
	}
	bad := func(times int) {
		t.Helper()
		if n := strings.Count(log.String(), "certificate not usable"); n != times {
			t.Errorf("it was logged %d times, want %d", n, times)
		}
		if s := set.Status()[0]; s.Error == "" || s.FailingSince.IsZero() || s.Name != "two.test" || !time.Now().Before(s.NotAfter) {
			t.Errorf("status: %+v", s)
		}
	}
	want("one.test")
	ca.Leaf(t, "two.test").WriteFiles(t, dir)
	age()
	want("two.test")

	must(t, os.WriteFile(pair.Key, []byte("no key"), 0o600))
	age()
	want("two.test")
	want("two.test")
	bad(1)
	if err := set.Reload(); err == nil || !strings.Contains(err.Error(), pair.Certificate) {
		t.Errorf("Reload of a bad key: %v", err)
	}
	must(t, os.Remove(pair.Key))
	want("two.test")
	want("two.test")
	bad(2)
	if err := set.Reload(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Reload of a missing key: %v", err)
	}

	must(t, syscall.Mkfifo(pair.Key, 0o600)) // nobody writes into it
	want("two.test")
	if err := set.Reload(); err == nil || !strings.Contains(err.Error(), "regular") {
		t.Errorf("Reload of a pipe: %v", err)
	}
	must(t, os.Remove(pair.Key))

	ca.Leaf(t, "three.test").WriteFiles(t, dir)
	age()
	want("three.test")
	if s := set.Status()[0]; s.Error != "" || s.Issuer != "smtptest CA" || s.LastSuccess.IsZero() || !strings.Contains(s.Source, "cert.pem") {
		t.Errorf("status: %+v", s)
	}
}

// TestStatusReadsFiles: what is told of files is of those that are there now, without
// a handshake before: a node that is not ready gets none.
func TestStatusReadsFiles(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), smtptest.NewCA(t)
	certFile, keyFile := ca.Leaf(t, "one.test").WriteFiles(t, dir)
	set, err := Open(Config{Pairs: []Pair{{certFile, keyFile}}})
	must(t, err)
	set.files[0].every = 0
	ca.Leaf(t, "two.test").WriteFiles(t, dir)
	later := time.Now().Add(time.Minute) // file systems may keep time too coarsely for a test
	must(t, os.Chtimes(certFile, later, later))
	if s := set.Status()[0]; s.Name != "two.test" {
		t.Errorf("status: %+v", s)
	}
}

// TestReloadNow: Reload does not wait for the next look, nor for the time of the files.
func TestReloadNow(t *testing.T) {
	t.Parallel()
	dir, ca := t.TempDir(), smtptest.NewCA(t)
	certFile, keyFile := ca.Leaf(t, "one.test").WriteFiles(t, dir)
	set, err := Open(Config{Pairs: []Pair{{certFile, keyFile}}})
	must(t, err)
	set.files[0].every = time.Hour
	ca.Leaf(t, "two.test").WriteFiles(t, dir)
	if leaf := leafOf(t, set); leaf.DNSNames[0] != "one.test" {
		t.Errorf("before: %v", leaf.DNSNames)
	}
	must(t, set.Reload())
	if leaf := leafOf(t, set); leaf.DNSNames[0] != "two.test" {
		t.Errorf("after: %v", leaf.DNSNames)
	}
}

// TestNames: the name asked for, a wildcard's, else the hostname's.
func TestNames(t *testing.T) {
	t.Parallel()
	ca := smtptest.NewCA(t)
	var pairs []Pair
	for _, names := range [][]string{{"other.test", "*.wild.test"}, {"mail.test", "smtp.test"}} {
		certFile, keyFile := ca.Leaf(t, names...).WriteFiles(t, t.TempDir())
		pairs = append(pairs, Pair{certFile, keyFile})
	}
	set, err := Open(Config{Hostname: "mail.test", Pairs: pairs, SelfSigned: true})
	must(t, err)
	for asked, want := range map[string]string{
		"other.test": "other.test", "OTHER.test": "other.test", "other.test.": "other.test", "a.wild.test": "other.test",
		"mail.test": "mail.test", "smtp.test": "mail.test", "": "mail.test", "unknown.test": "mail.test",
		"wild.test": "mail.test", "a.b.wild.test": "mail.test",
	} {
		cert, err := set.GetCertificate(&tls.ClientHelloInfo{ServerName: asked})
		if err != nil || cert.Leaf.DNSNames[0] != want {
			t.Errorf("%q gets %v, %v; want %s", asked, cert.Leaf.DNSNames, err, want)
		}
	}
}

// TestAlgorithms: of two certificates for one name, a client gets one that it can use.
func TestAlgorithms(t *testing.T) {
	t.Parallel()
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"mail.test"}}
	var list []*tls.Certificate
	for _, key := range []any{ecKey, rsaKey} {
		public := any(&ecKey.PublicKey)
		if key == any(rsaKey) {
			public = &rsaKey.PublicKey
		}
		der, err := x509.CreateCertificate(rand.Reader, template, template, public, key)
		must(t, err)
		leaf, err := x509.ParseCertificate(der)
		must(t, err)
		list = append(list, &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf})
	}
	for suite, want := range map[uint16]*tls.Certificate{
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256: list[0], tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256: list[1],
	} {
		hello := &tls.ClientHelloInfo{
			ServerName: "mail.test", CipherSuites: []uint16{suite}, SupportedVersions: []uint16{tls.VersionTLS12},
			SupportedCurves: []tls.CurveID{tls.CurveP256}, SupportedPoints: []uint8{0},
			SignatureSchemes: []tls.SignatureScheme{tls.ECDSAWithP256AndSHA256, tls.PSSWithSHA256, tls.PKCS1WithSHA256},
		}
		if got := choose(list, "mail.test", hello); got != want {
			t.Errorf("%s gets the other certificate", tls.CipherSuiteName(suite))
		}
	}
}

func TestOpenMissing(t *testing.T) {
	t.Parallel()
	_, err := Open(Config{Pairs: []Pair{{filepath.Join(t.TempDir(), "cert.pem"), "key.pem"}}})
	if err == nil || !strings.Contains(err.Error(), "cert.pem") {
		t.Errorf("a missing certificate: %v", err)
	}
}

func TestSelfSigned(t *testing.T) {
	t.Parallel()
	cert, err := SelfSign("relay.test", "127.0.0.1")
	must(t, err)
	if cert.Leaf.VerifyHostname("relay.test") != nil || cert.Leaf.VerifyHostname("127.0.0.1") != nil {
		t.Errorf("the certificate is for %v %v", cert.Leaf.DNSNames, cert.Leaf.IPAddresses)
	}
	set, err := Open(Config{Hostname: "relay.test", SelfSigned: true})
	must(t, err)
	if s := set.Status(); len(s) != 1 || s[0].Source != "self-signed" || s[0].Name != "relay.test" || s[0].Error != "" {
		t.Errorf("status: %+v", s)
	}
	if none, err := Open(Config{Hostname: "relay.test"}); err != nil {
		t.Error(err)
	} else if cert, err := none.GetCertificate(&tls.ClientHelloInfo{}); err == nil {
		t.Errorf("a certificate out of nothing: %v", cert)
	}
}
