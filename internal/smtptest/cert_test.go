package smtptest

import (
	"crypto/tls"
	"crypto/x509"
	"testing"
	"time"
)

func TestCA(t *testing.T) {
	t.Parallel()
	ca := NewCA(t)
	verify := func(leaf Leaf, roots *x509.CertPool, name string) error {
		cert, err := x509.ParseCertificate(leaf.Certificate.Certificate[0])
		if err != nil {
			t.Fatal(err)
		}
		_, err = cert.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
		return err
	}
	leaf := ca.Leaf(t, "mx.test", "127.0.0.1")
	for _, name := range []string{"mx.test", "127.0.0.1"} {
		if err := verify(leaf, ca.Pool(), name); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := verify(leaf, ca.Pool(), "other.test"); err == nil {
		t.Error("good for another name")
	}
	if err := verify(leaf, NewCA(t).Pool(), "mx.test"); err == nil {
		t.Error("good under another authority")
	}
	past := time.Now().Add(-time.Hour)
	if err := verify(ca.LeafBetween(t, past.Add(-time.Hour), past, "mx.test"), ca.Pool(), "mx.test"); err == nil {
		t.Error("good after its end")
	}
	cert, key := leaf.WriteFiles(t, t.TempDir())
	if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
		t.Error(err)
	}
	if pool := x509.NewCertPool(); !pool.AppendCertsFromPEM(ca.PEM()) {
		t.Error("PEM of the authority cannot be read")
	}
}
