package smtptest

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// CA is a certificate authority of one test.
type CA struct {
	cert *x509.Certificate
	key  crypto.Signer
	der  []byte
}

// Leaf is a certificate for a server and its key.
type Leaf struct {
	Certificate tls.Certificate
	CertPEM     []byte // the chain
	KeyPEM      []byte
}

// NewCA makes an authority with a key of its own (ECDSA P-256).
func NewCA(t testing.TB) *CA { return NewCAOf(t, newKey(t)) }

// NewCAOf is NewCA with a key, to have one that is weak.
func NewCAOf(t testing.TB, key crypto.Signer) *CA {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber:          newSerial(t),
		Subject:               pkix.Name{CommonName: "smtptest CA"},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &CA{cert: cert, key: key, der: der}
}

// RSALeaf is a certificate with an RSA key, which old key exchanges need, and its authority.
func RSALeaf(t testing.TB, names ...string) (Leaf, *CA) {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ca := NewCAOf(t, key)
	return ca.LeafOf(t, key, names...), ca
}

// PEM returns the authority's certificate.
func (ca *CA) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.der})
}

// Pool returns a pool of roots that holds only this authority.
func (ca *CA) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return pool
}

// Leaf makes a certificate that is good now for names: DNS names and IP addresses.
func (ca *CA) Leaf(t testing.TB, names ...string) Leaf {
	t.Helper()
	return ca.LeafBetween(t, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), names...)
}

// LeafBetween makes a certificate that is good between two times, to have one that
// has expired or is not good yet.
func (ca *CA) LeafBetween(t testing.TB, from, until time.Time, names ...string) Leaf {
	t.Helper()
	return ca.leaf(t, newKey(t), from, until, names...)
}

// LeafOf is Leaf with a key, to have one that is weak.
func (ca *CA) LeafOf(t testing.TB, key crypto.Signer, names ...string) Leaf {
	t.Helper()
	return ca.leaf(t, key, time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour), names...)
}

func (ca *CA) leaf(t testing.TB, key crypto.Signer, from, until time.Time, names ...string) Leaf {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: newSerial(t),
		Subject:      pkix.Name{CommonName: "smtptest"},
		NotBefore:    from,
		NotAfter:     until,
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return newLeaf(t, der, key)
}

// ServerConfig returns a TLS configuration with a Leaf for names.
func (ca *CA) ServerConfig(t testing.TB, names ...string) *tls.Config {
	t.Helper()
	return ca.Leaf(t, names...).ServerConfig()
}

// ClientConfig returns a TLS configuration that trusts only this authority and
// expects name.
func (ca *CA) ClientConfig(name string) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: ca.Pool(), ServerName: name}
}

// ServerConfig returns a TLS configuration with this certificate.
func (l Leaf) ServerConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{l.Certificate}}
}

// WriteFiles writes cert.pem and key.pem into dir and returns their paths.
func (l Leaf) WriteFiles(t testing.TB, dir string) (certFile, keyFile string) {
	t.Helper()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := os.WriteFile(certFile, l.CertPEM, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, l.KeyPEM, 0o600); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

func newLeaf(t testing.TB, der []byte, key crypto.Signer) Leaf {
	t.Helper()
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := Leaf{
		CertPEM: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		KeyPEM:  pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
	leaf.Certificate, err = tls.X509KeyPair(leaf.CertPEM, leaf.KeyPEM)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newSerial(t testing.TB) *big.Int {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		t.Fatal(err)
	}
	return serial.Add(serial, big.NewInt(1))
}
