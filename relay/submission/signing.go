package submission

import (
	"crypto"
	"crypto/tls"
	"io"
)

// serverTLS makes the configuration of one listener. Each has its own, and so
// its own session ticket keys: a ticket of one listener is worth nothing to another.
// ALPN is checked when a client offers it, against cross-protocol attacks.
func serverTLS(certs Certificates) *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: certs.GetCertificate,
		NextProtos:     []string{"smtp", "esmtp"},
	}
}

// limitSigning bounds the concurrent signatures of conf's handshakes by permits: signatures
// are the cost of a handshake, and a flood of them must leave processors for other work. A
// permit is held for a computation and never while waiting for a client, so that clients
// which stop within their handshake delay nobody else's.
func limitSigning(conf *tls.Config, permits chan struct{}) *tls.Config {
	get := conf.GetCertificate
	conf.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, err := get(hello)
		if err != nil {
			return nil, err
		}
		key, ok := cert.PrivateKey.(crypto.Signer)
		if !ok {
			return cert, nil // not a key that TLS can use either; TLS will report it
		}
		limited := *cert
		limited.PrivateKey = signer{key, permits}
		return &limited, nil
	}
	return conf
}

// signer is a key that takes a permit to sign.
type signer struct {
	crypto.Signer
	permits chan struct{}
}

// Sign implements crypto.Signer.
func (s signer) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	s.permits <- struct{}{}
	defer func() { <-s.permits }()
	return s.Signer.Sign(rand, digest, opts)
}
