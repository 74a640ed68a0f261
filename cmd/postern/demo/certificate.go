package demo

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"time"

	"postern/relay/certificate"
)

// WriteCertificate writes cert.pem and key.pem for localhost into dir, unless a
// pair that is good for another day is there: clients that were told to trust
// it go on working.
func WriteCertificate(dir string) error {
	certFile, keyFile := filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if pair, err := tls.LoadX509KeyPair(certFile, keyFile); err == nil && time.Now().Add(24*time.Hour).Before(pair.Leaf.NotAfter) {
		return nil
	}
	pair, err := certificate.SelfSign("localhost", "127.0.0.1", "::1")
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: pair.Certificate[0]}), 0o644)
}
