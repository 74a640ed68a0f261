package check

import (
	"bytes"
	"context"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"os"
	"slices"
	"strings"

	"postern/admin/health"
	"postern/cmd/postern/screen"
	"postern/relay/certificate"
)

var certificateKinds = []kind{
	{"tls.self-signed", health.Warning, "A self-signed certificate is made at each start; clients cannot trust it.",
		"set certificate and key in [tls], or names in [acme]"},
	{"tls.unreadable", health.Failed, "The certificate or key cannot be read or is not PEM, or every local user may change the key.",
		"correct the path in [tls], or let only the server's user read the file"},
	{"tls.mismatch", health.Failed, "The key does not belong to the certificate.", "use the two files that were made together, and reload"},
	{"tls.key-readable", health.Failed, "Every local user may read the private key.",
		"chmod 640 it and give it to the server's group; replace it if others may have read it"},
	{"tls.name", health.Warning, "No certificate has the hostname, so clients that use it refuse them.",
		"get a certificate with the hostname, or have clients use a name that it has"},
	{"tls.chain", health.Failed, "Intermediate certificates are missing, so many clients cannot verify the certificate.",
		"append the CA's intermediate certificates to the file (often fullchain.pem)"},
	{"tls.private", health.Warning, "This machine does not trust the certificate's CA.",
		"have every client trust your own CA, or get a public certificate"},
	{"tls.usage", health.Failed, "The certificate is not for servers.", "get one with the extended key usage serverAuth"},
	{"tls.weak", health.Warning, "The certificate's key or signature is weak, and clients are starting to refuse it.",
		"get one with ECDSA P-256, RSA 2048 or better, signed with SHA-256"},
}

// certificateFiles is one certificate that the listeners may show.
type certificateFiles struct{ certificate, key string }

// certificateFiles are all that are configured.
func (c *checkup) certificateFiles() (list []certificateFiles) {
	if c.cfg.TLS.Certificate != "" {
		list = append(list, certificateFiles{c.cfg.TLS.Certificate, c.cfg.TLS.Key})
	}
	for _, pair := range c.cfg.TLS.Pairs {
		list = append(list, certificateFiles{pair.Certificate, pair.Key})
	}
	return list
}

func (c *checkup) lookAtCertificates(ctx context.Context, r *report) {
	files := c.certificateFiles()
	switch {
	case len(c.cfg.Listeners) == 0:
		return
	case c.cfg.TLS.SelfSigned:
		r.add("tls.self-signed", "certificate", "self-signed: another one is made at each start")
		return
	case len(files) == 0 && !c.cfg.ACME.On():
		r.add("tls.none", "certificate", "the configuration names none")
		return
	}
	var leaves []*x509.Certificate
	for _, f := range files {
		if chain := c.certificatePair(r, f); chain != nil {
			leaves = append(leaves, chain[0])
		}
	}
	if c.cfg.ACME.On() {
		c.acme(ctx, r)
	}
	hostname, err := c.cfg.ServerName()
	if err != nil || c.cfg.ACME.Covers(hostname) || len(leaves) == 0 && !c.cfg.ACME.On() {
		return
	}
	if !slices.ContainsFunc(leaves, func(leaf *x509.Certificate) bool { return leaf.VerifyHostname(hostname) == nil }) {
		var all []string
		for _, leaf := range leaves {
			all = append(all, leaf.DNSNames...)
		}
		all = append(all, c.cfg.ACME.Names...)
		r.add("tls.name", "certificate", "it is for %s and not for the hostname %s", screen.OrDash(screen.Few(all)), hostname)
	}
}

// certificatePair looks at one pair and returns its chain, nil when it cannot be used.
func (c *checkup) certificatePair(r *report, f certificateFiles) []*x509.Certificate {
	chain, err := readChain(f.certificate)
	if err != nil {
		r.add("tls.unreadable", "certificate", "%v", err)
		return nil
	}
	exposed := func(err error) { r.add("tls.key-readable", "certificate", "%v", err) }
	if _, err := (certificate.Pair{Certificate: f.certificate, Key: f.key}).Load(exposed); err != nil {
		if strings.Contains(err.Error(), "does not match") {
			r.add("tls.mismatch", "certificate", "%s and %s: %v", f.certificate, f.key, err)
		} else {
			r.add("tls.unreadable", "certificate", "%v", err)
		}
		return nil
	}
	found := health.Certificate{Name: f.certificate, NotBefore: chain[0].NotBefore, NotAfter: chain[0].NotAfter}.Judge(c.now())
	if found.Status != health.OK {
		r.take(found)
	} else if c.certificateTrust(r, f, chain) {
		r.add("tls.ok", "certificate", "%s is for %s, until %s", f.certificate, screen.OrDash(screen.Few(chain[0].DNSNames)), screen.LocalTime(chain[0].NotAfter))
	}
	return chain
}

// certificateTrust says whether clients can verify the chain as this machine does.
func (c *checkup) certificateTrust(r *report, f certificateFiles, chain []*x509.Certificate) (ok bool) {
	leaf, ok := chain[0], true
	if weak := weakness(leaf); weak != "" {
		r.add("tls.weak", "certificate", "%s: %s", f.certificate, weak)
		ok = false
	}
	between := x509.NewCertPool()
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	_, err := leaf.Verify(x509.VerifyOptions{Roots: c.roots, Intermediates: between, CurrentTime: c.now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	var invalid x509.CertificateInvalidError
	switch {
	case err == nil:
		return ok
	case errors.As(err, &invalid) && invalid.Reason == x509.IncompatibleUsage:
		r.add("tls.usage", "certificate", "%s: %v", f.certificate, err)
	case len(chain) == 1 && len(leaf.IssuingCertificateURL) > 0 && leaf.Issuer.String() != leaf.Subject.String():
		r.add("tls.chain", "certificate", "%s: the certificate of %s is missing", f.certificate, leaf.Issuer)
	case selfSigned(leaf):
		r.add("tls.private", "certificate", "%s is self-signed: no CA vouches for it", f.certificate)
	default:
		r.add("tls.private", "certificate", "%s: %v", f.certificate, err)
	}
	return false
}

func selfSigned(leaf *x509.Certificate) bool {
	return bytes.Equal(leaf.RawIssuer, leaf.RawSubject) && leaf.CheckSignature(leaf.SignatureAlgorithm, leaf.RawTBSCertificate, leaf.Signature) == nil
}

// weakness says what is outdated about a certificate, "" for nothing.
func weakness(leaf *x509.Certificate) string {
	if key, is := leaf.PublicKey.(*rsa.PublicKey); is && key.N.BitLen() < 2048 {
		return "an RSA key of less than 2048 bits"
	}
	switch leaf.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.DSAWithSHA1:
		return "signed with " + leaf.SignatureAlgorithm.String()
	}
	return ""
}

// readChain reads the certificates of a PEM file.
func readChain(file string) (chain []*x509.Certificate, err error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, errors.New(file + ": " + err.Error())
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, errors.New(file + " holds no certificate")
	}
	return chain, nil
}
